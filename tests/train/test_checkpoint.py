"""Checkpoints: what is saved comes back, and what is damaged is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pargolf.config.schema import ModelConfig, OptimConfig
from pargolf.model.gpt import GPT
from pargolf.optim.groups import Optimizers
from pargolf.system.errors import UserError
from pargolf.train.checkpoint import Progress, load_checkpoint, load_weights, save_checkpoint

TINY = ModelConfig(vocab_size=32, seq_len=8, n_layers=2, d_model=16, n_heads=2, kv_heads=1, q_rank=4)


def trained(seed: int) -> tuple[GPT, Optimizers]:
    model = GPT(TINY, seed=seed)
    optimizers = Optimizers(model, OptimConfig(), torch.float32)
    tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(seed))
    for _ in range(2):
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizers.step(1.0, 0.9)
    return model, optimizers


def test_everything_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model, optimizers = trained(1)
    save_checkpoint(path, model, optimizers, Progress(7, 1.25, finished=True))
    other, fresh = trained(2)
    assert load_checkpoint(path, other, fresh) == Progress(7, 1.25, finished=True)
    for a, b in ((model.state_dict(), other.state_dict()), (optimizers.state(), fresh.state())):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-40], lambda data: b"\xff" * 16 + data[16:], lambda data: b""]
)
def test_damage_is_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model, optimizers = trained(1)
    save_checkpoint(path, model, optimizers, Progress(7))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(path, model, optimizers)


def test_another_model_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, *trained(1), Progress(7))
    bigger = GPT(ModelConfig(vocab_size=32, seq_len=8, n_layers=3, d_model=16, n_heads=2, kv_heads=1))
    with pytest.raises(UserError, match="does not fit") as caught:
        load_weights(path, bigger)
    assert "\n" not in str(caught.value)


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object], **progress: object) -> None:
    """Write a checkpoint's tensors and progress again, changed."""
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        stored = json.loads(file.metadata()["progress"])
    change(tensors)
    safetensors.torch.save_file(tensors, path, metadata={"progress": json.dumps(stored | progress)})


MOMENTUM, MOMENT = "momentum_buffer/blocks.0.mlp.fc.weight", "exp_avg/embed.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({MOMENTUM: torch.zeros(2, 2)}),
            f"{MOMENTUM} is no finite float32",
        ),
        (lambda t: t.update({MOMENT: t[MOMENT][:-1].clone()}), "exp_avg/embed.weight is no finite float32"),
        (lambda t: t.update({MOMENT: t[MOMENT].half()}), "exp_avg/embed.weight is no finite float32"),
        (lambda t: t[MOMENT].fill_(torch.nan), "exp_avg/embed.weight is no finite float32"),
        (lambda t: t.pop(MOMENTUM), "lacks momentum_buffer"),
        (lambda t: t.pop("step/skip_weights"), "lacks step/skip_weights"),
        (lambda t: t.update({"exp_avg/blocks.0.mlp.fc.weight": torch.zeros(1)}), "has the foreign exp_avg"),
        (lambda t: t.update({"noise": torch.zeros(1)}), "has the foreign noise"),
    ],
)
def test_optimizer_state_of_another_kind_is_damage(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, *trained(1), Progress(7))
    rewrite(path, change)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_checkpoint(path, *trained(2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "progress",
    [{"step": -1}, {"step": "many"}, {"seconds": float("nan")}, {"extended": 3}, {"colour": "red"}],
    ids=str,
)
def test_progress_of_another_kind_is_damage(tmp_path: Path, progress: dict[str, object]) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, *trained(1), Progress(7))
    rewrite(path, lambda t: None, **progress)
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(path, *trained(2))


def test_a_checkpoint_of_before_the_first_step_has_no_moments(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model = GPT(TINY, seed=1)
    optimizers = Optimizers(model, OptimConfig(), torch.float32)
    save_checkpoint(path, model, optimizers, Progress())
    assert load_checkpoint(path, model, optimizers) == Progress()


def test_a_missing_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train the run first"):
        load_weights(tmp_path / "none", GPT(TINY))


def test_weights_that_are_no_numbers_do_not_replace_a_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model, optimizers = trained(1)
    save_checkpoint(path, model, optimizers, Progress(7))
    with torch.no_grad():
        model.blocks[0].attn_scale[0] = float("nan")
    with pytest.raises(UserError, match="attn_scale holds NaN"):
        save_checkpoint(path, model, optimizers, Progress(8))
    assert load_weights(path, model).step == 7
