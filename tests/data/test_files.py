"""Files of every kind as one stream of documents."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pargolf.data import files
from pargolf.data.files import stem, text_files
from pargolf.system.errors import UserError

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}  # fmt: skip


def read(*paths: Path, separator: str | None = None) -> list[str]:
    return list(text_files(paths, separator).documents())


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def test_lines_and_plain_files(tmp_path: Path) -> None:
    one = tmp_path / "a.jsonl"
    one.write_text(json.dumps({"text": "one\n"}) + "\n\n" + json.dumps({"text": " "}) + '\n{"text": "two"}')
    plain = tmp_path / "b.txt"
    plain.write_bytes(b"three\r\n|four||")
    assert read(one, plain) == ["one\n", "two", "three\r\n|four||"]
    assert read(plain, one, separator="|") == ["three\r\n", "four", "one\n", "two"]


@pytest.mark.parametrize("packing", PACK)
def test_packed_files(packing: str, tmp_path: Path) -> None:
    (tmp_path / f"a.jsonl{packing}").write_bytes(PACK[packing](lines("naïve", "漢字")))
    (tmp_path / f"b.md{packing}").write_bytes(PACK[packing](b"# A title\n\nand text"))
    assert read(tmp_path) == ["naïve", "漢字", "# A title\n\nand text"]
    assert stem(tmp_path / f"a.b.jsonl{packing}") == "a.b"


def test_frames_and_members_follow_each_other(tmp_path: Path) -> None:
    for packing in (".gz", ".zst", ".xz", ".bz2"):
        path = tmp_path / f"a.jsonl{packing}"
        path.write_bytes(PACK[packing](lines("one")) + PACK[packing](lines("two")))
        assert read(path) == ["one", "two"]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"text {i}" for i in range(600)]
    parquet.write_table(pyarrow.table({"id": range(601), "text": [*texts, None]}), tmp_path / "a.parquet")
    assert read(tmp_path) == texts
    parquet.write_table(pyarrow.table({"body": texts}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match='no column "text"; it has body'):
        read(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="no readable parquet"):
        read(tmp_path / "c.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"pip install 'pargolf\[parquet\]'"):
        read(tmp_path / "a.parquet")


def test_folders_are_read_in_order_and_only_their_text(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.txt", "a.md", "image.png", "b/c/3.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lines(name) if name.endswith("jsonl") else name.encode())
    assert read(tmp_path) == ["a.md", "b/1.txt", "b/2.txt", "b/c/3.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no .*\.txt"):
        read(tmp_path / "empty")


def test_a_single_plain_file_is_cut_at_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_text("one\ntwo\n\n\n\nthree\n\nfour\n")
    text = text_files([path])
    assert text.cut and list(text.documents()) == ["one\ntwo", "three", "four\n"]
    assert not text_files([path], "|").cut and not text_files([path, path]).cut


@pytest.mark.parametrize(
    ("given", "meant"), [(r"\n\n", "\n\n"), (r"\t", "\t"), (r"\\n", "\\n"), ("é|", "é|")]
)
def test_escapes_in_the_separator(given: str, meant: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"one{meant}two")
    assert read(tmp_path / "a.txt", separator=given) == ["one", "two"]


@given(st.lists(st.text("ab|é\n", max_size=9), max_size=9).map("|".join), st.integers(1, 7))
def test_blocks_change_nothing(tmp_path_factory: pytest.TempPathFactory, content: str, size: int) -> None:
    path = tmp_path_factory.mktemp("blocks") / "a.txt"
    path.write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK", size)
        assert read(path, separator="|") == [part for part in content.split("|") if part.strip()]


def test_progress_goes_to_the_end(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(lines("x" * 90, "y" * 90))
    calls: list[tuple[float, float]] = []
    list(text_files([tmp_path]).documents(lambda done, total: calls.append((done, total))))
    assert calls[-1][0] == calls[-1][1] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert calls == sorted(calls)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ab\n\nc\xff", "offset 5"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}', "line 2"),
        ("a.jsonl", b'{"text": "x"}\n\nnope', "line 3"),
        ("a.jsonl", b'{"text": "\\ud800"}', "line 1"),
        ("a.jsonl", b"[1]", "line 1"),
        ("a.jsonl.gz", b"nothing", "is damaged or no .gz file"),
        ("a.jsonl.gz", gzip.compress(b"x" * 999, mtime=0)[:-9], "is damaged or no .gz file"),
        ("a.jsonl.zst", b"nothing", "is damaged or no .zst file"),
        (
            "a.txt.zst",
            zstandard.compress(b"x y z" * 999)[:-1],
            "no .zst file: it ends too early",
        ),
        ("a.txt.zst", zstandard.compress(b"x") + zstandard.compress(b"y")[:5], "it ends too early"),
        ("a.jsonl.xz", b"nothing", "is damaged or no .xz file"),
        ("a.jsonl.bz2", b"nothing", r"a\.jsonl\.bz2"),
        ("missing.txt", None, "cannot read"),
    ],
)
def test_rejects(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(path)


def test_an_empty_separator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="separator is empty"):
        text_files([tmp_path / "a.txt"], "")
