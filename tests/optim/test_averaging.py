"""Means of weights: EMA and SWA by their formulas, kept in checkpoints, and what a run ends with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pargolf.cli import dispatch
from pargolf.config.schema import ModelConfig, OptimConfig, RunConfig, TrainConfig
from pargolf.config.validation import validate
from pargolf.model.gpt import GPT
from pargolf.optim.averaging import average_of
from pargolf.optim.groups import Optimizers
from pargolf.run.folder import read_lines
from pargolf.system.errors import UserError
from pargolf.train.recorder import FolderRecorder
from support import Dataset

TINY = ModelConfig(vocab_size=32, seq_len=8, n_layers=2, d_model=16, n_heads=2, kv_heads=1, q_rank=4)


def run(model: GPT, t: TrainConfig, scales: list[float]) -> tuple[Optimizers, list[dict[str, torch.Tensor]]]:
    """Steps with these factors on the learning rates; the weights at the start and after each."""
    optimizers = Optimizers(model, OptimConfig(), torch.float32, average_of(model, t))
    seen = [{name: p.detach().clone() for name, p in model.named_parameters()}]
    for step, scale in enumerate(scales):
        tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(step))
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizers.step(scale, 0.9)
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return optimizers, seen


def test_ema_is_its_formula() -> None:
    model = GPT(TINY, seed=0)
    optimizers, seen = run(model, TrainConfig(ema_decay=0.75), [1.0] * 5)
    expected = seen[0]
    for weights in seen[1:]:
        expected = {name: 0.75 * mean + 0.25 * weights[name] for name, mean in expected.items()}
    assert optimizers.average is not None
    optimizers.average.show()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])
    optimizers.average.hide()
    for name, p in model.named_parameters():
        assert torch.equal(p, seen[-1][name])


def test_swa_is_the_mean_of_late_steps() -> None:
    model = GPT(TINY, seed=0)
    t = TrainConfig(swa_every=2, swa_below=0.5)
    optimizers, seen = run(model, t, [1.0, 0.9, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05])
    assert optimizers.average is not None
    optimizers.average.show()
    for name, p in model.named_parameters():
        expected = torch.stack([seen[step][name] for step in (4, 6, 8)]).mean(0)
        torch.testing.assert_close(p.detach(), expected)


def test_a_tail_is_its_formula_and_comes_back_whole() -> None:
    """E is the weights of the first step below 0.3, then follows by a fifth; the run ends with 0.6 of it."""
    model = GPT(TINY, seed=0)
    t = TrainConfig(tail_ema=0.6, tail_ema_steps=5, tail_ema_below=0.3)
    optimizers, seen = run(model, t, [1.0, 0.3, 0.29, 0.2, 0.1])
    assert optimizers.average is not None
    means = {name: mean.clone() for name, mean in optimizers.average.means.items()}
    for name in means:
        expected = seen[3][name]
        for weights in seen[4:]:
            expected = expected + (weights[name] - expected) / 5
        torch.testing.assert_close(means[name], expected)
    optimizers.average.show()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), 0.4 * seen[-1][name] + 0.6 * means[name])
    optimizers.average.hide()  # not a bit is lost by scoring now and then
    for name, p in model.named_parameters():
        assert torch.equal(p, seen[-1][name])
        assert torch.equal(optimizers.average.means[name], means[name])


def test_a_tail_begins_anew_where_the_rates_have_risen() -> None:
    """As in a finished run that goes on."""
    t = TrainConfig(tail_ema=0.6, tail_ema_steps=5, tail_ema_below=0.3)
    optimizers, seen = run(GPT(TINY, seed=0), t, [0.2, 0.1, 1.0, 0.2])
    assert optimizers.average is not None
    assert all(torch.equal(mean, seen[4][name]) for name, mean in optimizers.average.means.items())


@pytest.mark.parametrize(
    "t", [TrainConfig(tail_ema=0.6), TrainConfig(swa_every=2, swa_below=0.1)], ids=["tail", "swa"]
)
def test_a_mean_that_has_taken_nothing_changes_nothing(t: TrainConfig) -> None:
    model = GPT(TINY, seed=0)
    optimizers, seen = run(model, t, [1.0] * 3)
    assert optimizers.average is not None
    optimizers.average.show()
    assert all(torch.equal(p, seen[-1][name]) for name, p in model.named_parameters())


def test_off_there_is_none() -> None:
    assert average_of(GPT(TINY, seed=0), TrainConfig()) is None
    config = RunConfig(train=TrainConfig(ema_decay=0.9, swa_every=3))
    with pytest.raises(UserError, match="set one"):
        validate(config)
    validate(replace(config, train=TrainConfig(ema_decay=0.9)))


def words(dataset: Dataset, runs: Path, name: str, **more: Any) -> list[str]:
    changes = {"train__ema_decay": 0.8, "train__iterations": 12, "eval__stride": 16} | more
    return ["run", "demo", "--runs", str(runs), "--name", name, *dataset.options(**changes)]


def test_a_run_ends_with_its_mean_and_resumes_it(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dispatch(words(dataset, tmp_path, "whole")) == 0
    assert dispatch(words(dataset, tmp_path, "plain", train__ema_decay=0)) == 0
    whole, plain = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "plain"))
    # Training itself is the same; the weights are exchanged at its end.
    name = "blocks.0.mlp.fc.weight"
    assert torch.equal(whole[f"average/{name}"], plain[f"weight/{name}"])
    assert not torch.equal(whole[f"weight/{name}"], plain[f"weight/{name}"])
    metrics = [r for r in read_lines(tmp_path / "whole/metrics.jsonl") if "val_bpb" in r]
    result = json.loads((tmp_path / "whole/result.json").read_text())
    assert metrics[-1]["val_bpb"] == pytest.approx(result["checkpoint"]["standard"]["val_bpb"], abs=1e-6)

    # Cut off after the checkpoint of step 5, and gone on.
    saved = Optimizers.step
    calls = []

    def stops(self: Optimizers, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) > 7:
            raise KeyboardInterrupt
        saved(self, *arguments)

    monkeypatch.setattr(Optimizers, "step", stops)
    assert dispatch(words(dataset, tmp_path, "cut")) == 130
    monkeypatch.undo()
    assert dispatch(words(dataset, tmp_path, "cut")) == 0
    cut = load_file(tmp_path / "cut" / "checkpoint.safetensors")
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_an_extended_run_goes_on_with_the_weights_and_not_the_mean(dataset: Dataset, tmp_path: Path) -> None:
    constant: dict[str, Any] = {"train__warmdown_steps": 0, "train__warmdown_fraction": 0}
    short = words(dataset, tmp_path, "short", **constant)
    assert dispatch(short) == 0
    long = words(dataset, tmp_path, "long", train__iterations=16, **constant)
    assert dispatch(long) == 0
    shutil.copytree(tmp_path / "short", tmp_path / "extended")
    assert dispatch(["train", str(tmp_path / "extended"), "--extend", "--train.iterations", "16"]) == 0
    one, other = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("long", "extended"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_an_extension_that_is_stopped_at_once_keeps_the_weights(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant: dict[str, Any] = {"train__warmdown_steps": 0, "train__warmdown_fraction": 0}
    assert dispatch(words(dataset, tmp_path, "x", **constant)) == 0
    extend = ["train", str(tmp_path / "x"), "--extend", "--train.iterations", "16"]
    monkeypatch.setattr(FolderRecorder, "__enter__", lambda self: self._note_signal(15, None) or self)
    monkeypatch.setattr(FolderRecorder, "__exit__", lambda *_: None)
    assert dispatch(extend) == 128 + 15
    monkeypatch.undo()
    assert dispatch(extend[:2]) == 0
    assert dispatch(words(dataset, tmp_path, "long", train__iterations=16, **constant)) == 0
    one, other = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("x", "long"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
