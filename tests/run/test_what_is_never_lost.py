"""A run's folder in trouble: two commands at once, settings by hand, weights that overflow, a full disk."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pargolf
from pargolf.cli import dispatch
from pargolf.config.schema import ModelConfig
from pargolf.fit.calibrate import calibrate
from pargolf.run.folder import Log, append_line, read_lines
from pargolf.system import files
from pargolf.system.errors import UserError
from pargolf.system.files import locked
from pargolf.train import runs
from pargolf.train.checkpoint import read_progress
from pargolf.train.loop import Training
from support import Dataset, shaken, write_run


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a command ends with."""
    assert dispatch([str(word) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def test_a_second_command_on_a_run_is_refused(
    copy: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    options = dataset.options(eval__stride=16, train__val_every=10)
    with locked(copy, "is taken"):
        for command in (
            ["train", "demo", "--runs", copy.parent, "--name", "copy", *options],
            ["run", "demo", "--runs", copy.parent, "--name", "copy", *options],
            ["pack", copy],
            ["eval", copy],
        ):
            assert "copy is in use by another command" in refused(capsys, *command)
    assert dispatch(["pack", str(copy)]) == 0


def test_a_lock_goes_with_the_process_that_holds_it(tmp_path: Path) -> None:
    hold = f"""
import os
from pathlib import Path
from pargolf.system.files import locked

with locked(Path({str(tmp_path)!r}), "x"):
    print("held", flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", hold], capture_output=True, text=True)
    assert done.returncode == -9 and done.stdout == "held\n"
    with locked(tmp_path, "x") as lock:
        assert lock is not None


def test_the_checkpoint_is_saved_before_the_last_score(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Training, "_score", fail)
    words = ["train", "demo", "--runs", str(tmp_path), "--name", "x", *dataset.options(train__val_every=0)]
    with pytest.raises(ZeroDivisionError):
        dispatch(words)
    assert read_progress(tmp_path / "x/checkpoint.safetensors").finished
    monkeypatch.undo()
    assert dispatch(words) == 0


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("export", "level", 99, "export.level of zstd must be in 1..22, is 99"),
        ("export", "budget", 0, "export.budget must be at least 1, is 0"),
        ("export", "clip_quantile", 0, "export.clip_quantile must be in 0.5..1, is 0"),
        ("model", "n_layers", 0, "model.n_layers must be in 2..1000, is 0"),
        ("train", "micro_batches", 7, "train.batch_tokens 512 is not a multiple"),
        ("eval", "stride", "64", "eval.stride must be of type int"),
        ("eval", "colour", 1, "unknown setting eval.colour"),
    ],
)
def test_settings_by_hand_are_judged_when_they_are_read(
    section: str, name: str, value: Any, message: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((copy / "config.json").read_text())
    config[section][name] = value
    (copy / "config.json").write_text(json.dumps(config))
    for command in ("pack", "eval", "verify"):
        said = refused(capsys, command, copy)
        assert f"{copy}/config.json: " in said and message in said


def test_weights_that_overflow_have_no_score(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = shaken(ModelConfig(512, 32, n_layers=2, d_model=16, n_heads=2, kv_heads=1, q_rank=4))
    with torch.no_grad():
        model.blocks[0].attn_scale.fill_(1e38)
        model.blocks[1].attn_scale.fill_(1e38)
    run = write_run(tmp_path / "absurd", model, dataset.tokenizer)
    for command in (
        ["eval", run.folder, "--dataset", dataset.folder, "--stride", 16],
        ["sample", run.folder, "The"],
    ):
        assert "the model computes nan: its weights are damaged" in refused(capsys, *command)
    assert not run.result.exists()
    with pytest.raises(UserError, match="the model computes nan"):
        pargolf.load(run.folder).bits_per_byte("The city", stride=16)
    rows = np.arange(3 * 33).reshape(3, 33)
    with pytest.raises(UserError, match="the model computes nan"):
        calibrate(model, rows)


def test_no_file_holds_a_number_that_json_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", {"val_bpb": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_score_that_cannot_be_saved_is_shown(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (copy / "result.json").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(runs, "write_json", full)
    monkeypatch.setattr("pargolf.run.folder.open", full, raising=False)
    assert dispatch(["eval", str(copy)]) == 0
    said = capsys.readouterr().out
    bpb = json.loads(before)["artifact"]["sliding"]["val_bpb"]
    assert f"{bpb:.4f}" in said and "the score could not be saved in" in said
    assert said.count("is not written any more: Read-only file system") == 1
    assert (copy / "result.json").read_bytes() == before


def test_a_read_only_folder_is_no_reason_to_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(38, "no locks here")))
    with locked(tmp_path, "x") as lock:
        assert lock is None
    monkeypatch.undo()
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()  # so that it cannot be opened, as in a folder that nobody may write to
    with locked(tmp_path, "x") as lock:
        assert lock is None


def test_lines_of_anything_but_numbers_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1, "train_loss": 3.0})
    with path.open("a") as file:
        for loss in ('"3"', "null", "NaN", "[1]", "true"):
            file.write(f'{{"step": 2, "train_loss": {loss}}}\n')
        file.write('{"step": true, "train_loss": 1.0}\n')
    assert read_lines(path) == [{"step": 1, "train_loss": 3.0}]
    with pytest.raises(ValueError, match="JSON"):
        append_line(path, {"step": 3, "train_loss": float("inf")})


def test_a_newer_artifact_is_said(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["compare", str(copy)]) == 0
    assert "newer than its score" not in capsys.readouterr().out
    assert dispatch(["pack", str(copy), "--codec", "lzma"]) == 0
    assert dispatch(["compare", str(copy)]) == 0
    assert f"{copy}/model.pgz is newer than its score; score it with" in capsys.readouterr().out
    assert dispatch(["report", str(copy), "--tokens", "300"]) == 0
    assert "model.pgz is newer than its score" in (copy / "report.html").read_text()
    about = ["--author", "a", "--github-id", "a", "--name", "n", "--out", copy.parent / "out"]
    assert "is not what" in refused(capsys, "submit", copy, *about)
    result = json.loads((copy / "result.json").read_text())
    del result["artifact_sha256"]  # as runs of before have it
    (copy / "result.json").write_text(json.dumps(result))
    assert dispatch(["compare", str(copy)]) == 0
    assert "newer than its score" not in capsys.readouterr().out
    assert dispatch(["eval", str(copy)]) == 0
    capsys.readouterr()
    assert dispatch(["compare", str(copy)]) == 0
    assert "newer than its score" not in capsys.readouterr().out


def test_a_finished_run_is_extended(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (copy / "config.json").read_bytes()
    assert "set more --train.iterations" in refused(capsys, "train", copy, "--extend")
    refused(capsys, "train", copy, "--extend", "--train.iterations", 15)
    assert (copy / "config.json").read_bytes() == before
    other = refused(capsys, "train", copy, "--extend", "--train.iterations", 30, "--optim.muon-lr", 0.1)
    assert "holds a run with other settings (optim.muon_lr" in other
    assert "holds a run with other settings" in refused(capsys, "train", copy, "--train.iterations", 30)
    assert "name its folder, and not demo" in refused(capsys, "train", "demo", "--extend")
    assert dispatch(["train", str(copy), "--extend", "--train.iterations", "30"]) == 0
    assert "extending a run that was finished at step 20" in capsys.readouterr().out
    progress = read_progress(copy / "checkpoint.safetensors")
    assert (progress.step, progress.finished, progress.extended) == (30, True, (20,))
    losses = [r["step"] for r in read_lines(copy / "metrics.jsonl") if "train_loss" in r]
    assert losses == list(range(1, 31))
    assert json.loads((copy / "config.json").read_text())["train"]["iterations"] == 30
    # What was made of the shorter run is kept, and taken for nothing of the longer one.
    assert {path.name for path in copy.glob("*-20.*")} == {"model-20.pgz", "result-20.json"}
    assert "is unfinished" in refused(capsys, "compare", copy)
    for command in ("pack", "eval"):
        assert dispatch([command, str(copy)]) == 0
    assert json.loads((copy / "result.json").read_text())["extended_at"] == [20]
    about = ["--author", "a", "--github-id", "a", "--name", "n", "--out", copy.parent / "out"]
    assert "was extended after its end" in refused(capsys, "submit", copy, *about)
    # Named by its folder alone, a run goes on as it was.
    assert dispatch(["train", str(copy)]) == 0
    assert "training is already finished, at step 30" in capsys.readouterr().out


def test_a_log_that_cannot_be_written_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log(tmp_path / "none" / "train.log")
    log("one")
    log("two")
    said = capsys.readouterr().out
    assert said.count("is not written any more") == 1 and "one" in said and "two" in said


def test_two_processes_do_not_train_one_run(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = dataset.options(train__iterations=200)
    words = ["train", "demo", "--runs", str(tmp_path), "--name", "x", *options]
    first = subprocess.Popen([sys.executable, "-m", "pargolf", *words], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    try:
        assert any(line.startswith("step:") for line in first.stdout)
        assert "is in use by another command" in refused(capsys, *words)
    finally:
        first.terminate()
        first.communicate()
    assert dispatch(words) == 0
