import re

import pytest

from pargolf.data import corpus
from pargolf.data.corpus import embedded_documents
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
