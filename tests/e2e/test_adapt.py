"""A run that is scored while it learns: from its settings to a submission that is checked and proven."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pargolf.cli import dispatch
from support import Dataset


def test_an_adapted_run_is_submitted_and_checked(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], module_cache: None
) -> None:
    options = dataset.options(
        eval__stride=16, eval__adapt="sgd", eval__sgd_chunk=256, eval__tilt=1.0, train__iterations=8
    )
    assert dispatch(["run", "demo", "--runs", str(tmp_path), "--name", "adapted", *options]) == 0
    run = tmp_path / "adapted"
    assert "adapted, sgd + hints" in capsys.readouterr().out
    result = json.loads((run / "result.json").read_text())
    scores = result["artifact"]
    assert list(scores) == ["standard", "sliding", "adapted"]
    assert list(result["checkpoint"]) == ["standard", "sliding"]
    assert scores["adapted"]["tokens"] == scores["sliding"]["tokens"]
    assert len(result["along"]["adapted"]) == 50
    assert "scoring took " in (run / "train.log").read_text()

    folder = tmp_path / "submission"
    about = ["--author", "A", "--github-id", "G", "--name", "Adapted", "--form", "readable"]
    assert dispatch(["submit", str(run), *about, "--out", str(folder), "--positions", "8"]) == 0
    readme = (folder / "README.md").read_text()
    assert "as it learns from what it has scored (`eval.adapt`" in readme and "without learning" in readme
    told = json.loads((folder / "submission.json").read_text())
    assert told["val_bpb"] == pytest.approx(scores["adapted"]["val_bpb"], abs=1e-8)
    assert dispatch(["check", str(folder)]) == 0, capsys.readouterr().out
    command = [sys.executable, "train_gpt.py", "--eval", "model.pgz"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert f"adapted_exact val_loss:{scores['adapted']['val_loss']:.8f}" in done.stdout, done.stderr

    assert dispatch(["eval", str(run), "--eval.sgd-chunk", "0"]) == 2
    assert "eval.sgd_chunk must be at least 1, is 0" in capsys.readouterr().err

    # Another setting on the finished run; its score is no longer that of its settings.
    assert dispatch(["eval", str(run), "--eval.adapt", "off", "--eval.tilt", "0"]) == 0
    assert list(json.loads((run / "result.json").read_text())["artifact"]) == ["standard", "sliding"]
    assert dispatch(["submit", str(run), *about, "--out", str(tmp_path / "other")]) == 2
    assert "is not what" in capsys.readouterr().err
