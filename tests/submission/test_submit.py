"""What cannot be submitted, and the figures of what can."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from pargolf.challenge import RECORD_NATS
from pargolf.check.check import check_folder, faults
from pargolf.cli import dispatch
from pargolf.submission.differences import Differences
from pargolf.submission.submit import About, Form, _p_value, requirements, submit
from pargolf.system.errors import UserError
from pargolf.verify.conditions import Condition, Verdict

ABOUT = About("A", "G", "Tiny")


def edited(finished: Path, to: Path, file: str, change: Callable[[Any], None]) -> Path:
    """A copy of a run, one of whose JSON files has been changed."""
    shutil.copytree(finished, to)
    content = json.loads((to / file).read_text())
    change(content)
    (to / file).write_text(json.dumps(content))
    return to


def test_a_submission_folder_is_whole(finished: Path, tmp_path: Path) -> None:
    other = edited(finished, tmp_path / "other", "config.json", lambda c: c["train"].update(seed=42))
    out = tmp_path / "out"
    about = ["--author", "Ada", "--github-id", "ada", "--name", "Tiny & low-rank", "--blurb", "Small."]
    arguments = [str(finished), str(other), *about, "--out", str(out), "--record-loss", "9"]
    assert dispatch(["submit", *arguments]) == 0
    assert {path.name for path in out.iterdir()} == {
        "train_gpt.py", "README.md", "submission.json", "requirements.txt", "model.pgz",
        "train_seed1337.log", "train_seed42.log",
    }  # fmt: skip
    entry = json.loads((out / "submission.json").read_text())
    result = json.loads((finished / "result.json").read_text())
    assert (entry["author"], entry["github_id"], entry["blurb"]) == ("Ada", "ada", "Small.")
    assert entry["val_bpb"] == pytest.approx(result["artifact"]["sliding"]["val_bpb"], rel=1e-12)
    assert entry["bytes_code"] == (out / "train_gpt.py").stat().st_size == result["bytes_code"]
    assert entry["bytes_total"] == entry["bytes_code"] + (out / "model.pgz").stat().st_size
    assert entry["seeds"] == [1337, 42]
    assert entry["seed_results"]["42"]["steps"] == 20
    assert entry["p_value"] is None  # two copies do not vary
    log = (out / "train_seed1337.log").read_text()
    assert f"val_bpb:{entry['seed_results']['1337']['val_bpb']:.8f}" in log
    readme = (out / "README.md").read_text()
    for part in (
        "# Tiny & low-rank\n",
        "| 1337 | 20 | ",
        "SEED=1337 \\\n  python train_gpt.py",
        "q_rank = 8\n",
        "**causality**",
        "## What differs from demo\n\n- `model.vocab_size = 512`; demo has 2048. Token ids 0 .. vocab_size",
        "must match the tokenizer.\n- `model.seq_len = 64`; demo has 256. Context length in tokens",
        "\n\n## Results\n",
    ):
        assert part in readme


def test_a_submission_that_changes_nothing_says_so(finished: Path, tmp_path: Path) -> None:
    same = Differences("demo", [], [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pargolf.submission.submit.differences", lambda config: same)
        submit([finished], ABOUT, tmp_path / "out", positions=4)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "## What differs from demo\n\nNothing that could change the score.\n\n## Results\n" in readme


def test_hours_of_training_break_no_rule_of_the_unlimited_track(finished: Path, tmp_path: Path) -> None:
    slow = edited(finished, tmp_path / "slow", "result.json", lambda r: r.update(train_seconds=9000.0))
    log = slow / "train.log"
    log.write_text(re.sub(r"train_time:\d+ms", "train_time:9000000ms", log.read_text()))
    about = ["--author", "A", "--github-id", "G", "--name", "Slow"]
    for name, more in ("record", []), ("unlimited", ["--unlimited"]):
        assert dispatch(["submit", str(slow), *about, "--out", str(tmp_path / name), *more]) == 0
    assert "training time" in faults(check_folder(tmp_path / "record"))
    assert faults(check_folder(tmp_path / "unlimited")) == []
    assert "Trained for 9,000 seconds" in (tmp_path / "unlimited" / "README.md").read_text()


@pytest.mark.parametrize("form", ["readable", "minified", "compressed"])
def test_a_submission_breaks_no_rule(form: Form, finished: Path, tmp_path: Path) -> None:
    submit([finished], ABOUT, tmp_path / "out", form, positions=4)
    findings = check_folder(tmp_path / "out")
    assert faults(findings) == [], findings


def test_runs_of_two_configurations_are_refused(finished: Path, tmp_path: Path) -> None:
    def change(config: Any) -> None:
        config["train"]["seed"] = 2
        config["optim"]["muon_lr"] = 0.5

    other = edited(finished, tmp_path / "other", "config.json", change)
    with pytest.raises(UserError, match=r"optim.muon_lr is 0.02 there, 0.5 here"):
        submit([finished, other], ABOUT, tmp_path / "out")
    with pytest.raises(UserError, match="the same seed: 1337, 1337"):
        submit([finished, finished], ABOUT, tmp_path / "out")


@pytest.mark.parametrize("missing", ["result.json", "model.pgz", "train.log"])
def test_unfinished_runs_are_refused(missing: str, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / missing).unlink()
    with pytest.raises(UserError, match=f"it has no {missing}"):
        submit([copy], ABOUT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_figures_must_agree(finished: Path, tmp_path: Path) -> None:
    def better(result: Any) -> None:
        result["artifact"]["sliding"]["val_bpb"] -= 0.1

    liar = edited(finished, tmp_path / "liar", "result.json", better)
    with pytest.raises(UserError, match="does not hold the score of its artifact"):
        submit([liar], ABOUT, tmp_path / "out")
    repacked = edited(finished, tmp_path / "again", "config.json", lambda c: c["export"].update(mlp_bits=5))
    with pytest.raises(UserError, match="is not what"):
        submit([repacked], ABOUT, tmp_path / "out")
    empty = edited(finished, tmp_path / "empty", "result.json", lambda result: result.clear())
    with pytest.raises(UserError, match="lacks a figure"):
        submit([empty], ABOUT, tmp_path / "out")


def test_nothing_is_overwritten(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="name another --out"):
        submit([finished], ABOUT, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_the_verdict_on_the_running_model_is_stated(finished: Path, tmp_path: Path) -> None:
    submit([finished], ABOUT, tmp_path / "out", positions=8)
    readme = (tmp_path / "out" / "README.md").read_text()
    for condition in ("causality", "normalization", "determinism", "accounting", "one pass"):
        assert f"- **{condition}**: " in readme


def test_a_score_that_is_not_valid_is_not_submitted(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Condition("causality", False, 1, 1.0, 0.0, "a later token shows")
    monkeypatch.setattr("pargolf.submission.submit.verify_target", lambda *_, **__: Verdict((broken,)))
    with pytest.raises(UserError, match="not valid: causality"):
        submit([finished], ABOUT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_started_from_another_is_refused(finished: Path, tmp_path: Path) -> None:
    cut = edited(finished, tmp_path / "cut", "config.json", lambda c: c["train"].update(start_from="runs/a"))
    with pytest.raises(UserError, match="starts from scratch"):
        submit([cut], ABOUT, tmp_path / "out")


def test_the_p_value_is_that_of_the_challenge() -> None:
    losses = [1.9498, 1.9505, 1.9543]
    mean, spread = stats.tmean(losses), stats.tstd(losses)
    t = (mean - (1.98 - RECORD_NATS)) / (spread / 3**0.5)
    assert _p_value(losses, 1.98) == pytest.approx(stats.t.cdf(t, df=2))
    assert _p_value(losses, 1.98) < 0.01 < _p_value(losses, 1.957)  # type: ignore[operator]
    assert _p_value([1.95], 1.98) is None
    assert _p_value(losses, None) is None


def test_requirements_are_distributions_with_versions() -> None:
    source = "import os\nimport torch.nn as nn\nfrom numpy import array\nimport safetensors.torch\n"
    lines = requirements(source)
    assert [line.partition("==")[0] for line in lines] == ["numpy", "safetensors", "torch"]
    assert all("+" not in line and line.split("==")[1][0].isdigit() for line in lines)
