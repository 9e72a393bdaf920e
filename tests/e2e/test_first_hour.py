"""The README's first hour, as typed, on a tiny run."""

import json
import re
import shlex
from pathlib import Path

import pytest
import zstandard

from pargolf.cli import dispatch
from support import Dataset

README = Path(__file__).parents[2] / "README.md"


def first_hour() -> list[list[str]]:
    section = README.read_text().split("## A first hour")[1]
    lines = re.findall(r"^```\n(.*?)^```", section, re.M | re.S)[0].splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_the_first_hour_goes_as_the_readme_says(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in dataset.documents)
    Path("mine.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    mine = ("data.dataset", "data.tokenizer", "data.corpus", "data.order", "model.vocab-size")
    options = dataset.options(train__iterations=4, eval__stride=16)
    tiny = [
        part
        for pair in zip(options[::2], options[1::2], strict=True)
        if pair[0][2:] not in mine
        for part in pair
    ]
    ran = []
    for command, *arguments in first_hour():
        if command == "ablate":
            continue  # six processes; test_study has one
        if command in ("plan", "run"):
            arguments += tiny
        if command == "data":
            arguments += ["--vocab-size", "512"]
        assert dispatch([command, *arguments]) == 0, (command, capsys.readouterr())
        ran.append(command)
        if command == "data":
            said = capsys.readouterr().out.splitlines()[-1]
            assert said.startswith("next: pargolf run demo --data mine")
    assert {"data", "plan", "run", "report", "compare", "verify", "submit", "check"} == set(ran)
    assert Path("runs/first/report.html").exists() and Path("first/train_gpt.py").exists()
