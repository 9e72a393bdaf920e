import hashlib
import json
import re
from pathlib import Path

import pytest

from pargolf.data import corpus
from pargolf.data.corpus import embedded_documents, read_documents, split_documents
from pargolf.system.errors import UserError


def test_embedded_articles_are_clean_prose() -> None:
    pytest.importorskip("gensim")
    documents = embedded_documents()
    assert len(documents) == 106
    assert 2_900_000 < sum(len(text.encode()) for text in documents) < 3_100_000
    assert documents[0].startswith("Anarchism\n\n")
    for text in documents:
        assert "''" not in text and "\n\n\n" not in text and "File:" not in text
        assert not re.search(r"[ \t]$", text, re.MULTILINE)
        assert not re.search(r"\n==+ *References *==+\s*\Z", text)


def test_embedded_text_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gensim")
    monkeypatch.setattr(corpus, "EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(UserError, match="not the known one"):
        embedded_documents()


def test_embedded_text_without_gensim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gensim.corpora.wikicorpus", None)
    with pytest.raises(UserError, match=r"pargolf\[demo\]"):
        embedded_documents()


def test_tidy_drops_debris_and_empty_sections() -> None:
    text = "'''Asphalt''' (, , occasionally ) is   black .\nFile:a.jpg|caption\n140pxSalmon\n*\n\n\n\n" \
        "==Uses==\nroads\n===Early===\n\n==References==\n\n"  # fmt: skip
    assert corpus._tidy(text) == "Asphalt (occasionally ) is black.\n\n==Uses==\nroads"


def test_read_documents(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text(json.dumps({"text": "one\n"}) + "\n\n" + json.dumps({"text": " "}) + '\n{"text": "two"}')
    plain = tmp_path / "b.txt"
    plain.write_bytes(b"three\r\n|four||")
    assert read_documents([lines, plain]) == ["one\n", "two", "three\r\n|four||"]
    assert read_documents([plain, lines], "|") == ["three\r\n", "four", "one\n", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ab\xff", "offset 2"),
        ("a.txt", b" \n", "no text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}', "line 2"),
        ("a.jsonl", b'{"text": "x"}\n\nnope', "line 3"),
        ("a.jsonl", b'{"text": "\\ud800"}', "line 1"),
        ("a.jsonl", b"[1]", "line 1"),
        ("missing.txt", None, "cannot read"),
    ],
)
def test_read_documents_rejects(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_documents([path])


def test_split_takes_the_smallest_hashes_in_order() -> None:
    documents = [f"text {i}" for i in range(20)]
    train, val = split_documents(documents, 0.25)
    by_hash = sorted(documents, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    assert set(val) == set(by_hash[:5])
    assert val == [text for text in documents if text in val]
    assert train == [text for text in documents if text not in val]
    assert len(split_documents(documents, 0.001)[1]) == 1
    assert len(split_documents(documents, 0.999)[0]) == 1


def test_split_rejects() -> None:
    with pytest.raises(UserError, match="separator"):
        split_documents(["a"], 0.1)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="between 0 and 1"):
            split_documents(["a", "b"], fraction)
