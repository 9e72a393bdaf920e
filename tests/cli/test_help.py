"""Help texts that a person reads: whole sentences in whole lines, and no default that means nothing."""

import re

import pytest

from pargolf.cli import COMMANDS, dispatch
from pargolf.config.settings import in_words


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        dispatch([*command.split(), "--help"])
    assert not left.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [*COMMANDS, "data fineweb"])
def test_no_help_speaks_of_none_or_of_empty_words(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = help_of(command, capsys)
    assert printed.startswith(f"usage: pargolf {command}")
    for nothing in ("None", "(default: )", "{,"):
        assert nothing not in printed, nothing
    assert printed.count("(default: '')") == printed.count("--train.start-from")  # whose help says it


def test_a_help_has_no_breaks_but_the_window_s(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert '.jsonl (field "text", one document a line), .parquet ' in help_of("data", capsys)


def test_each_help_ends_its_sentences() -> None:
    assert [name for name, text in in_words().items() if not re.fullmatch(r"[^ ].*[.)]", text)] == []


def test_the_overview_names_presets_in_short_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch([]) == 0
    _, _, names = capsys.readouterr().out.partition("\npresets: ")
    assert max(map(len, names.splitlines())) <= 80
