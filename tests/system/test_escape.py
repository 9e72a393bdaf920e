"""What files say is shown, and obeyed by no terminal."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from pargolf.cli import dispatch
from pargolf.system.console import _Visible
from pargolf.system.errors import UserError
from pargolf.system.escape import visible


@given(st.text())
def test_visible_text_is_printable_and_tells_texts_apart(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text


def test_errors_show_control_characters() -> None:
    assert str(UserError("a\x1b[2J\nb\u202e")) == r"a\x1b[2J b\u202e"


@pytest.mark.parametrize("terminal", [False, True])
def test_tables_show_control_characters(terminal: bool) -> None:
    table = Table(title="t\x1b]0;owned\x07")
    table.add_column("name\x1b[2J")
    table.add_row("run\x1b[1A\x9b2J")
    file = io.StringIO()
    console = _Visible(file=file, force_terminal=terminal, width=80, color_system=None)
    console.print(table)
    console.print("line\x1b[2J", markup=False, highlight=False)
    printed = file.getvalue()
    assert r"run\x1b[" in printed  # a column is as wide as rich takes its words to be
    assert r"line\x1b[2J" in printed
    for code in ("\x1b]", "\x1b[2J", "\x1b[1A", "\x9b", "\x07"):
        assert code not in printed


def test_a_folder_s_name_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["eval", str(tmp_path / "\x1b[2Jrun")]) == 2
    assert "\x1b" not in capsys.readouterr().err
