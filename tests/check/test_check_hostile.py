"""Folders that mean harm: nothing in them is run, followed, or read without end."""

import json
import re
import zlib
from pathlib import Path

import pytest

from pargolf.cli import dispatch
from submission_support import by_rule, pack, submission_json


def test_nothing_in_the_folder_is_run(good: Path) -> None:
    spy = "import pathlib\npathlib.Path('/tmp/ran').touch()\n"
    marker = good / "ran"
    text = spy.replace("/tmp/ran", str(marker)) + (good / "train_gpt.py").read_text()
    for content in (
        text,
        pack(text),
        f"import zlib\nexec(zlib.decompress({zlib.compress(text.encode())!r}))",
    ):
        (good / "train_gpt.py").write_text(content)
        assert by_rule(good)["syntax"].level == "ok"
        assert not marker.exists()


@pytest.mark.parametrize(
    "code",
    [
        "x" + "()" * 900,
        "x" + ".y" * 3000,
        "x" + ".y" * 2500 + " + 1",
        "x" + "[0]" * 900,
        "val_tokens" + "+1" * 900,
        "f(" * 90 + "val_tokens" + ")" * 90,
        "x = [" + "val_tokens," * 10_000 + "]",
        "if 1:\n" + "".join(" " * n + "if val_tokens:\n" for n in range(1, 95)) + " " * 95 + "pass",
        "exec(" * 90 + "''" + ")" * 90,
        "A = A\nexec(A)",
        "A = B\nB = A\nexec(A)",
        "exec()\nexec(*a)\n__import__()\n__import__(*a)\nsubprocess.run()\n(lambda: 0).backward()",
    ],
)
def test_twisted_code_is_judged_without_a_crash(good: Path, code: str) -> None:
    (good / "train_gpt.py").write_text(code)
    assert by_rule(good)["network"].level in ("ok", "warning", "not checked")


def test_hostile_words_stay_words(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submission_json(good, date="[red]\x1b[31m\ud800 not a date")
    (good / "\x1b[31m[bold]").symlink_to("/")
    out = tmp_path / "findings.json"
    assert dispatch(["check", str(good), "--json", str(out)]) == 2
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "[bold]" in printed.out
    findings = json.loads(out.read_text())
    assert findings["accepted"] is False
    assert {r["rule"] for r in findings["rules"] if r["level"] == "fault"} == {"submission.json", "folder"}


def test_a_crowded_folder_is_not_listed_to_its_end(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pargolf.check.folder.MOST_FILES", 8)
    assert by_rule(good)["folder"].level == "ok"
    (good / "one more").mkdir()
    assert by_rule(good)["folder"].message == "more than 8 files"


@pytest.mark.parametrize("field", ["ms_per_step", "steps", "bytes_total", "bytes_code", "val_bpb"])
def test_numbers_of_any_length_are_judged(good: Path, field: str) -> None:
    submission_json(good, **{field: 10**400})
    assert by_rule(good)["submission.json"].level in ("ok", "fault")


def test_a_score_of_zero_is_no_record(good: Path) -> None:
    for log in good.glob("*.log"):
        log.write_text(re.sub(r"val_bpb:[0-9.]+", "val_bpb:0.0", log.read_text()))
    assert by_rule(good)["record"].level == "fault"
