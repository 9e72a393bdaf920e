"""A run with all options of the optimizers, which is cut off and goes on."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pargolf.cli import dispatch
from pargolf.optim.groups import Optimizers
from pargolf.run.folder import read_lines
from support import Dataset

STACK = "demo+normuon+soap+cautious+ema-nesterov+power-cool+tail-ema"
MORE: dict[str, object] = {
    "optim__soap_every": 2, "optim__update_floor": 0.3, "optim__outward_brake": 0.5,
    "optim__muon_momentum_cooldown": 0.3, "optim__embed_weight_decay": 0.1, "train__iterations": 12,
    "train__val_every": 4, "train__checkpoint_every": 5,
}  # fmt: skip


def test_cut_off_and_continued_it_is_the_same_run(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str) -> int:
        options = [*dataset.options(**MORE), "--optim.radius-pin", "--optim.adam-cautious-decay"]
        return dispatch(["train", STACK, "--runs", str(tmp_path), "--name", name, *options])

    assert train("whole") == 0
    saved, calls = Optimizers.step, []

    def stops(self: Optimizers, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) > 11:  # in the tail, after the checkpoint of step 10
            raise KeyboardInterrupt
        saved(self, *arguments)

    monkeypatch.setattr(Optimizers, "step", stops)
    assert train("cut") == 130
    monkeypatch.undo()
    assert train("cut") == 0
    assert read_lines(tmp_path / "cut/metrics.jsonl") == read_lines(tmp_path / "whole/metrics.jsonl")
    whole, cut = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert [name for name in whole if not whole[name].equal(cut[name])] == []
    for kept in ("soap_right_basis", "neuron_squares", "drift", "average"):
        assert any(name.startswith(f"{kept}/") for name in whole)
