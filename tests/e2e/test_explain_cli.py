"""`pargolf explain` as a user types it."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pargolf
from pargolf.cli import dispatch

TEXT = "In 1945, the city of Zürich was rebuilt.\nScientists have <b>found</b> 漢字 & more.\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "some text.txt"
    path.write_text(TEXT)
    return path


def test_a_pipe_gets_a_line_a_token_and_tables(
    finished: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["explain", str(finished), "--text", str(source), "--stride", "16"]) == 0
    out = capsys.readouterr().out
    model = pargolf.load(finished)
    rows = [line.split("\t") for line in out.splitlines() if "\t" in line][1:]
    assert [row[0] for row in rows] == [token.piece for token in model.logprobs(TEXT)]
    totals = [line.split("│") for line in out.splitlines() if line.startswith("│ total")]
    for cells in totals:
        assert cells[3].strip() == f"{len(TEXT.encode()):,}"
        assert cells[5].strip() == f"{model.bits_per_byte(TEXT, 16):.4f}"
    assert len(totals) == 2


def test_a_page_is_written_in_place_of_the_text(
    finished: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "new" / "page.html"
    assert dispatch(["explain", str(finished), "--text", str(source), "-o", str(page)]) == 0
    out = capsys.readouterr().out
    assert f"written: {page}" in out and "\t" not in out
    html = page.read_text()
    assert f"{pargolf.load(finished).bits_per_byte(TEXT):.4f}</data>" in html
    assert "<b>" not in html and "some text.txt" in html


def test_a_reader_that_leaves_early_is_no_error(finished: Path, source: Path) -> None:
    source.write_text(TEXT * 200)
    command = [sys.executable, "-m", "pargolf", "explain", str(finished), "--text", str(source)]
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(command)} | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("piece\tkind\tbytes")
    assert (done.returncode, done.stderr) == (128 + 13, "")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "cannot read"),
        (b"", [], "text.txt is empty"),
        (b"The city \xff\xfe", [], "is not UTF-8 text: bad byte at offset 9"),
        (b"The city", ["--stride", "65"], "must lie in 1..64"),
        (b"The city", ["--stride", "0"], "must lie in 1..64"),
    ],
)
def test_mistakes_are_one_clear_line(
    content: bytes | None, options: list[str], message: str, finished: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = tmp_path / "text.txt"
    if content is not None:
        source.write_bytes(content)
    assert dispatch(["explain", str(finished), "--text", str(source), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert dispatch(["explain", str(tmp_path / "nowhere"), "--text", str(source)]) == 2
