"""A run's files: appended lines that survive a crash, replaced files that are never half there."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from pargolf.config.schema import RunConfig
from pargolf.run.folder import append_line, read_lines, start_run
from pargolf.system.errors import UserError
from pargolf.system.files import replaced_folder, write_atomic


def test_a_torn_line_is_skipped_and_the_next_one_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1, "train_loss": 3.0})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "train_l')  # killed here
    assert read_lines(path) == [{"step": 1, "train_loss": 3.0}]
    append_line(path, {"step": 2, "train_loss": 2.0})
    assert read_lines(path) == [{"step": 1, "train_loss": 3.0}, {"step": 2, "train_loss": 2.0}]


def test_the_last_record_of_a_step_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for record in (
        {"step": 1, "train_loss": 3.0},
        {"step": 2, "train_loss": 9.0},
        {"step": 2, "val_loss": 5.0},
        {"step": 2, "train_loss": 2.0},
    ):
        append_line(path, record)
    assert read_lines(path) == [
        {"step": 1, "train_loss": 3.0},
        {"step": 2, "train_loss": 2.0},
        {"step": 2, "val_loss": 5.0},
    ]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_belongs_to_one_configuration(tmp_path: Path) -> None:
    config = RunConfig()
    start_run(tmp_path / "a", config)
    (tmp_path / "a" / ".checkpoint.safetensors.x.tmp").write_bytes(b"half")
    start_run(tmp_path / "a", config)
    assert not list((tmp_path / "a").glob("*.tmp"))
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=2))
    with pytest.raises(UserError, match="seed is 1337 there, 2 here"):
        start_run(tmp_path / "a", other)
    # A name tells no settings apart; the run keeps the one that it was last continued by.
    start_run(tmp_path / "a", dataclasses.replace(config, preset="lowrank-q192"))
    assert json.loads((tmp_path / "a" / "config.json").read_text())["preset"] == "lowrank-q192"


def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to run folder"):
        start_run(tmp_path / "file" / "run", RunConfig())


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "mine").write_text("kept")
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="no"), replaced_folder(folder) as new:
        (new / "other").write_text("")
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("mine", "kept")]
