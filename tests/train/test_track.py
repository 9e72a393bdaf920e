"""Curves for a viewer: what TensorBoard and Weights & Biases are given is what the run recorded."""

import importlib.util
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pargolf.cli import dispatch
from pargolf.config.schema import OptimConfig
from pargolf.run.folder import Run, read_lines
from support import Dataset, pargolf


def test_tensorboard_shows_what_the_run_recorded_also_after_it_is_gone_on_with(
    dataset: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "runs/tracked"
    options = dataset.options(train__track="tensorboard", train__iterations=6, train__val_every=4)
    assert dispatch(["run", "demo", "--runs", str(folder.parent), "--name", "tracked", *options]) == 0
    assert dispatch(["train", str(folder), "--extend", "--train.iterations", "9"]) == 0

    events = EventAccumulator(str(Run(folder).tensorboard))
    events.Reload()
    shown = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    recorded = read_lines(Run(folder).metrics)
    for tag in ("train_loss", "val_loss", "val_bpb"):
        assert shown[tag] == pytest.approx({line["step"]: line[tag] for line in recorded if tag in line})
    scales = {line["step"]: line["lr_scale"] for line in recorded if "lr_scale" in line}
    assert shown["lr/muon"] == pytest.approx({k: v * OptimConfig().muon_lr for k, v in scales.items()})
    assert set(shown["step_ms"]) == set(range(1, 10)) and min(shown["step_ms"].values()) > 0
    assert set(shown["artifact/val_bpb"]) == set(shown["artifact/bytes"]) == {6}


def test_wandb_is_offline_where_nobody_is_logged_in(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key in it
    options = dataset.options(train__track="wandb", train__iterations=3)
    done = pargolf("train", "demo", "--runs", tmp_path / "runs", "--name", "tracked", *options)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "runs/tracked")
    (written,) = run.folder.glob(f"wandb/offline-run-*/run-{run.wandb_id.read_text()}.wandb")
    content = written.read_bytes().decode("latin-1")
    for name in ("train_loss", "val_bpb", "step_ms", "lr/embed", "muon_lr"):
        assert name in content


def test_a_viewer_that_is_not_installed_is_one_line_before_anything_is_made(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    options = dataset.options(train__track="wandb")
    assert dispatch(["train", "demo", "--runs", str(tmp_path / "runs"), *options]) == 2
    assert capsys.readouterr().err.endswith("install it with: pip install 'pargolf[wandb]'\n")
    assert not (tmp_path / "runs").exists()
