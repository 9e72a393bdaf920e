"""Parts of the training loop that the command line cannot show."""

import json
import re
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pargolf.cli import dispatch
from pargolf.config.schema import ExportConfig, ModelConfig, OptimConfig
from pargolf.data.dataset import Data
from pargolf.kernels import native
from pargolf.model.gpt import GPT
from pargolf.optim.muon import plain_product
from pargolf.run.folder import read_lines
from pargolf.score.windows import Score
from pargolf.system import machine
from pargolf.system.errors import UserError
from pargolf.train.loop import Training
from pargolf.train.qat import quantized
from support import ALL_OF_OPTIM, Dataset, training_of

TINY = ModelConfig(vocab_size=512, seq_len=32, n_layers=2, d_model=16, n_heads=2, kv_heads=1, q_rank=4)


def training(dataset: Dataset, micro_batches: int) -> Training:
    return training_of(GPT(TINY, seed=0), dataset, 256, micro_batches)


@pytest.mark.parametrize("o", [OptimConfig(), ALL_OF_OPTIM], ids=["plain", "all"])
def test_a_step_never_waits_for_the_device(
    o: OptimConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without data, all that reads a value on the host fails: .item(), float(), .cpu()."""
    device = torch.device("meta")
    fused = sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices"
    monkeypatch.setattr(*fused, lambda: ["meta"])
    with device:
        model = GPT(TINY, torch.bfloat16)
    on_meta = training_of(model, dataset, 256, 2, o)
    for number, weights in enumerate((None, quantized(model, ExportConfig()), None)):
        ahead = on_meta.optimizers.ahead
        with nullcontext() if ahead is None else ahead.shifted(0.5):
            loss = on_meta.step(number, 1.0, 0.9, weights)
        with pytest.raises(RuntimeError, match="meta"):
            float(loss)


def test_learning_rate_and_momentum_do_not_recompile(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled = training(dataset, 1)
    compiled.model.compile_regions()
    compiled.step(0, 1.0, 0.9)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled.step(1, 0.5, 0.95)
        compiled.step(2, 0.25, 0.97)


def test_attention_in_training_is_what_flash_kernels_take(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mask, and keys and values not repeated: else PyTorch takes its slow kernel on GPUs, silently."""
    calls = []

    def recorded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: bool) -> Tensor:
        calls.append((q.size(1), k.size(1), v.size(1), mask, options))
        return attention(q, k, v, mask, **options)

    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    training(dataset, 1).step(0, 1.0, 0.9)
    assert calls == [(2, 1, 1, None, {"is_causal": True, "enable_gqa": True})] * TINY.n_layers


def test_a_gpu_fetches_batches_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[tuple[bool, bool]] = []
    pinned: list[Tensor] = []

    def pin_memory(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    def to(tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        fetched.append((tensor is pinned[-1] and tensor.is_contiguous(), non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "to", to)
    rows = np.arange(12).reshape(3, 4)
    for array in (rows[:, :-1], rows[:, 1:]):
        assert (machine.to_device(array, torch.device("cuda")).numpy() == array).all()
    assert fetched == [(True, True)] * 2


def test_warm_up_steps_leave_no_trace(dataset: Dataset) -> None:
    warmed, cold = training(dataset, 1), training(dataset, 1)
    assert warmed.warm_up(3) > 0
    for number in range(3):
        assert torch.equal(warmed.step(number, 1.0, 0.9), cold.step(number, 1.0, 0.9))
    assert warmed.optimizers.state().keys() == cold.optimizers.state().keys()
    for a, b in zip(warmed.model.parameters(), cold.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_warm_up_keeps_the_state_of_a_continued_run(dataset: Dataset) -> None:
    warmed, cold = training(dataset, 1), training(dataset, 1)
    for each in (warmed, cold):
        each.step(0, 1.0, 0.9)
    warmed.warm_up(2)
    for number in (1, 2):
        assert torch.equal(warmed.step(number, 1.0, 0.9), cold.step(number, 1.0, 0.9))


def test_accumulated_pieces_are_one_batch(dataset: Dataset) -> None:
    whole, pieces = training(dataset, 1), training(dataset, 4)
    for number in range(3):
        loss, summed = whole.step(number, 1.0, 0.9), pieces.step(number, 1.0, 0.9)
        torch.testing.assert_close(loss, summed)


def test_auto_settings_become_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.resolve_device("cpu") == "cpu"
    assert machine.resolve_dtype("auto", "cuda") == "bfloat16"
    assert machine.resolve_dtype("float32", "cuda") == "float32"
    seconds = {torch.bfloat16: 1.0, torch.float32: 2.0}
    monkeypatch.setattr(machine, "_matmul_seconds", seconds.__getitem__)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert machine.resolve_dtype("auto", "cpu") == "bfloat16"
    seconds[torch.bfloat16] = 3.0
    assert machine.resolve_dtype("auto", "cpu") == "float32"
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    seconds[torch.bfloat16] = 1.0
    assert machine.resolve_dtype("auto", "cpu") == "float32"


@pytest.mark.parametrize(("device", "command", "named"), [("cpu", "g++", "C++"), ("cuda", "gcc", "C")])
def test_compilation_needs_a_compiler(
    monkeypatch: pytest.MonkeyPatch, device: str, command: str, named: str
) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: name if name == command else None)
    assert machine.resolve_compile("auto", device) == machine.resolve_compile("on", device) == "on"
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine.resolve_compile("auto", device) == "off"
    with pytest.raises(UserError, match=re.escape(f"on {device} needs a {named} compiler")):
        machine.resolve_compile("on", device)


def test_the_compile_cache_is_the_runs_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    assert "shared" in machine.use_compile_cache("shared", tmp_path)
    assert machine.os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
    assert str(tmp_path) in machine.use_compile_cache("clean", tmp_path)
    assert machine.os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


@pytest.mark.parametrize("name", ["two words", 'it\'s "quoted" $HOME', "größer-模型", "x" * 200])
def test_a_compiler_gets_along_with_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(variable, "")
    folder = tmp_path / name / "compile-cache"
    assert machine.use_compile_cache("clean", folder) == f"compile cache: clean, in {folder}"
    path = machine.os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert re.fullmatch(r"[A-Za-z0-9_./+-]+", path)
    folder.mkdir(parents=True, exist_ok=True)
    assert Path(path).resolve() == folder.resolve()


@pytest.mark.parametrize("compiling", ["on", "off"])
def test_code_for_this_cpu_trains_only_where_compiling_is_on(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiling: str
) -> None:
    seen: list[Training] = []
    monkeypatch.setattr(Training, "run", lambda self, *arguments: seen.append(self))
    options = dataset.options(train__compile=compiling, train__device="cpu")
    dispatch(["train", "demo", "--runs", str(tmp_path), "--name", "tiny", *options])
    (built,) = seen
    served = compiling == "on" and native.serves(torch.float32, torch.device("cpu"))
    assert all(("attend" in vars(block.attn)) == served for block in built.model.blocks)
    assert built.optimizers.muon.product is (native.symmetric_product if served else plain_product)


def test_scores_are_of_the_layers_as_they_are_looped_then(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one at the end, which the artifact's must equal, and those after a run is gone on with."""
    options = dataset.options(
        model__loop_times=1, model__loop_from=1, model__loop_to=1, train__loop_share=0.5, train__val_every=5,
        eval__stride=16,
    )  # fmt: skip
    looped: list[bool] = []
    real = Training._score

    def score(self: Training, scorer: GPT, data: Data) -> Score:
        result = real(self, scorer, data)
        looped.append(scorer.looped)
        return result

    monkeypatch.setattr(Training, "_score", score)
    assert dispatch(["run", "demo", "--runs", str(tmp_path), "--name", "x", *options]) == 0
    assert looped == [False, True, True, True]  # before steps 5, 10 and 15, and at the end
    metrics = [r for r in read_lines(tmp_path / "x/metrics.jsonl") if "val_bpb" in r]
    result = json.loads((tmp_path / "x/result.json").read_text())
    assert metrics[-1]["val_bpb"] == pytest.approx(result["checkpoint"]["standard"]["val_bpb"], abs=1e-6)
