"""What only a GPU can show; skipped where there is none."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from plain_record import RecordStep
from torch import Tensor

from pargolf.config.presets import load_preset
from pargolf.config.schema import ExportConfig, ModelConfig, OptimConfig
from pargolf.model.gpt import GPT
from pargolf.train.clock import Clock
from pargolf.train.qat import quantized
from support import ALL_OF_OPTIM, Dataset, pargolf, shaken, training_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
GPU = torch.device("cuda")
C = ModelConfig(vocab_size=512, seq_len=64, n_layers=4, d_model=64, n_heads=4, kv_heads=2, q_rank=16)


@pytest.fixture
def waiting_allowed_again() -> Iterator[None]:
    """After the test, also one that failed while waiting for the GPU raised."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def losses_and_weights(dataset: Dataset, device: torch.device, compiled: bool) -> tuple[Tensor, list[Tensor]]:
    """Two steps in float32, in two micro-batches each."""
    torch._dynamo.reset()
    model = shaken(C).to(device)
    if compiled:
        model.compile_regions()
    training = training_of(model, dataset, 1024, 2)
    losses = torch.stack([training.step(number, 1.0, 0.9) for number in range(2)])
    return losses.cpu(), [p.detach().cpu() for p in model.parameters()]


@pytest.mark.parametrize("compiled", [False, True])
def test_two_steps_are_those_of_the_cpu(dataset: Dataset, compiled: bool) -> None:
    losses, weights = losses_and_weights(dataset, GPU, compiled)
    expected, expected_weights = losses_and_weights(dataset, torch.device("cpu"), False)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
    # Adam's first steps are signs of gradients, so single values may differ by whole steps of 0.02 or 0.03.
    for weight, same in zip(weights, expected_weights, strict=True):
        assert (weight - same).norm() < 0.01 * same.norm()


@pytest.mark.parametrize(("qat", "o"), [(False, None), (True, None), (False, ALL_OF_OPTIM)])
def test_a_step_never_waits_for_the_gpu(
    dataset: Dataset, waiting_allowed_again: None, qat: bool, o: OptimConfig | None
) -> None:
    torch._dynamo.reset()
    model = GPT(C, torch.bfloat16, seed=0).to(GPU)
    model.compile_regions()
    training = training_of(model, dataset, 1024, 2, o)
    weights = [quantized(model, ExportConfig()) if qat else None for _ in range(3)]
    training.step(0, 1.0, 0.9, weights[0])  # compiles
    torch.cuda.set_sync_debug_mode("error")
    loss = training.step(1, 1.0, 0.9, weights[1]) + training.step(2, 0.5, 0.95, weights[2])
    torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


def test_the_clock_counts_what_the_gpu_takes() -> None:
    """The host launches a hundred multiplies in no time; events of the GPU say what they took."""
    x = torch.randn(4096, 4096, device=GPU)
    x @ x
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    clock = Clock(0.0, GPU)
    clock.resume()
    start.record()
    for _ in range(10):
        for _ in range(10):
            x @ x
        clock.launched()
    end.record()
    running = clock.seconds
    paused = clock.pause()
    taken = start.elapsed_time(end) / 1000
    assert taken <= paused < 1.2 * taken
    assert running == pytest.approx(paused, rel=0.3)


def test_a_run_on_the_gpu_is_scored_alike_on_the_cpu(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained compiled and in bfloat16; its artifact scored on both."""
    options = dataset.options(train__dtype="bfloat16", train__compile="on", eval__stride=16)
    done = pargolf("run", "demo", "--runs", tmp_path, "--name", "tiny", *options)
    assert done.returncode == 0, done.stderr
    assert "1 x cuda" in done.stdout
    scores = []
    for on_gpu in (True, False):
        if not on_gpu:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        done = pargolf("eval", tmp_path / "tiny")
        assert done.returncode == 0, done.stderr
        scores.append([float(x) for x in re.findall(r"val_bpb[:= ]+([0-9.]+)", done.stdout)])
    assert scores[0] == pytest.approx(scores[1], rel=2e-3)
    config = json.loads((tmp_path / "tiny/config.json").read_text())
    assert config["train"]["device"] == "cuda"


def test_the_plain_form_of_a_record_has_the_loss_of_the_model() -> None:
    """Its attention within documents takes another kernel there than on a CPU."""
    config = load_preset("record-0427+small")
    model = shaken(config.model).to(GPU)
    plain = RecordStep(config, torch.float32, GPU).model
    plain.load_state_dict(model.state_dict())
    rows = torch.randint(2, config.model.vocab_size, (2, config.model.seq_len + 1), device=GPU)
    rows[:, ::50] = config.model.bos_id
    loss, same = (its(rows[:, :-1], rows[:, 1:]) for its in (plain, model))
    torch.testing.assert_close(loss, same, rtol=1e-4, atol=0)


def test_documents_apart_are_compiled_as_written() -> None:
    """As written they are a mask; compiled, FlexAttention leaves out blocks of keys."""
    c = load_preset("record-0427+small").model
    rows = torch.randint(2, c.vocab_size, (2, c.seq_len + 1), device=GPU)
    rows[:, ::50] = c.bos_id
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = shaken(c).to(GPU)
        if compiled:
            model.compile_regions()
        loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for written, same in zip(*found, strict=True):
        assert (written - same).norm() <= 1e-2 * written.norm() + 1e-6
