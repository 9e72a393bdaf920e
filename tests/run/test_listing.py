"""`pargolf list`: each run's state, whatever its folder holds."""

import json
import shutil
from pathlib import Path

import pytest

from pargolf.cli import dispatch
from pargolf.run.listing import list_runs
from pargolf.system.errors import UserError
from pargolf.system.files import locked


def test_states_are_those_of_the_files(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("scored", "packed", "trained", "interrupted", "study/one", "damaged", "torn"):
        shutil.copytree(finished, tmp_path / name)
    for name in ("packed", "trained", "interrupted"):
        (tmp_path / name / "result.json").unlink()
    for name in ("trained", "interrupted"):
        (tmp_path / name / "model.pgz").unlink()
    (tmp_path / "interrupted" / "checkpoint.safetensors").unlink()
    (tmp_path / "damaged" / "config.json").write_text("{")
    (tmp_path / "torn" / "checkpoint.safetensors").write_bytes(b"xxxxxxxxxxxx")
    (tmp_path / "notes").mkdir()
    found = {run.name: run for run in list_runs(tmp_path)}
    states = {name: run.state for name, run in found.items()}
    assert states.pop("damaged").startswith("damaged: ") and states.pop("torn").startswith("damaged: ")
    assert states == {name: name for name in ("scored", "packed", "trained", "interrupted")} | {
        "study/one": "scored"
    }
    result = json.loads((finished / "result.json").read_text())
    scored = found["scored"]
    assert (scored.step, scored.iterations) == (20, 20)
    assert (
        scored.val_bpb == result["artifact"]["sliding"]["val_bpb"]
        and scored.bytes_total == result["bytes_total"]
    )
    with locked(tmp_path / "trained", "x"):
        assert {run.name: run.state for run in list_runs(tmp_path)}["trained"] == "running"
    assert dispatch(["list", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "interrupted" in said and f"{scored.val_bpb:.4f}" in said


def test_a_folder_without_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path) == []
    with pytest.raises(UserError, match="there is no folder"):
        list_runs(tmp_path / "none")
