"""A text explained: the score's own bits, every token once in every table, and safe from what it shows."""

import io
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import pargolf
from pargolf.analysis import explained
from pargolf.analysis.explain import KINDS, LIKELIEST, Explanation, explain, kind_of
from pargolf.library import Model
from pargolf.score.passages import token_bits
from pargolf.system.errors import UserError

EVIL = "<img src=x onerror=\"alert(1)\">\t'&amp;'\x1b[31mred\r\n\u202eevil"


@pytest.fixture(scope="module")
def model(finished: Path) -> Model:
    return pargolf.load(finished)


@pytest.mark.parametrize(
    ("text", "is_byte", "before", "kind"),
    [
        (" ", False, "a", "whitespace"),
        ("\n", True, "a", "whitespace"),
        ("\u00a0", True, "a", "whitespace"),
        ("ü", True, "Z", "byte fallback"),
        ("!", True, "", "byte fallback"),
        ("1", False, "", "number"),
        (" 19", False, "n", "number"),
        ("²", False, "m", "number"),
        ("The", False, "", "capitalised word"),
        (" City", False, "e", "capitalised word"),
        ("I", False, "(", "capitalised word"),
        ("ǅ", False, " ", "capitalised word"),
        (" city", False, "e", "lower-case word"),
        ("city", False, "\n", "lower-case word"),
        ("漢", False, "", "lower-case word"),
        ("ity", False, "c", "word continuation"),
        ("ASA", False, "N", "word continuation"),
        ("th", False, "9", "word continuation"),
        ("\u0301", False, "e", "word continuation"),
        ("rich", False, "ü", "word continuation"),
        (" (", False, "e", "punctuation"),
        ("),", False, "e", "punctuation"),
        ("🙂", False, "", "punctuation"),
        ("", False, "e", "punctuation"),
    ],
)
def test_kinds(text: str, is_byte: bool, before: str, kind: str) -> None:
    assert kind_of(text, is_byte, before) == kind


def whole(found: Explanation, text: str) -> None:
    """Assert that the spans are the text, and that each table has every token once."""
    assert "".join(span.text for span in found.spans) == text
    total = found.total
    assert total.tokens == len(found.tokens) == found.spans[-1].stop
    assert total.bytes == len(text.encode()) == sum(span.bytes for span in found.spans)
    for rows in (found.by_kind(), found.by_context()):
        assert sum(row.tokens for row in rows) == total.tokens
        assert sum(row.bytes for row in rows) == total.bytes
        assert math.fsum(row.bits for row in rows) == pytest.approx(total.bits, rel=1e-13)
        assert all(row.tokens for row in rows)
    assert [row.label for row in found.by_kind()] == [
        kind for kind in KINDS if any(token.kind == kind for token in found.tokens)
    ]


parts = st.one_of(st.text(max_size=8), st.sampled_from(["The city ", "\ufffd\ufffd", "\u2581", "19", "é漢"]))


@given(parts=st.lists(parts, max_size=40), stride=st.sampled_from([7, 64]))
@settings(max_examples=40, deadline=None)
def test_any_text_is_whole_and_costs_what_it_scores(model: Model, parts: list[str], stride: int) -> None:
    text = "".join(parts) or "\ufffd"
    found = explain(model, text, stride)
    whole(found, text)
    assert found.total.bpb == pytest.approx(model.bits_per_byte(text, stride), rel=1e-12)
    bits = token_bits(model.gpt, model.encode(text), stride, model.target.scoring.batch_rows)
    assert [token.bits for token in found.tokens] == bits[1:].tolist()


def test_rank_and_likeliest_are_those_of_the_distribution(model: Model) -> None:
    text = "The city of Zürich was the first of these in the state of the art. " * 4
    found = explain(model, text, stride=16)
    tokens = model.encode(text)
    ids = {model.tokenizer.piece_of(i): i for i in range(model.tokenizer.vocab_size)}
    assert len(tokens) > 80
    for place, token in enumerate(found.tokens):
        # Windows at 0, 16, 32, ...: a later one scores its last 16, unless it is the tail.
        start = 0 if place < 64 else 16 * ((place - 64) // 16 + 1)
        assert token.context == place + 1 - start
        with torch.no_grad():
            context = torch.from_numpy(tokens[start : place + 1])[None]
            share = model.gpt.head(model.gpt.trunk(context))[0, -1].softmax(-1)
        order = share.argsort(descending=True).tolist()
        own = int(tokens[place + 1])
        assert token.piece == model.tokenizer.piece_of(own)
        assert 2**-token.bits == pytest.approx(float(share[own]), rel=1e-4)
        # Probabilities that differ by rounding alone may change places.
        assert share[order[token.rank - 1]].item() == pytest.approx(share[own].item(), rel=1e-5)
        assert len(token.likeliest) == LIKELIEST
        for (piece, probability), expected in zip(token.likeliest, order, strict=False):
            assert probability == pytest.approx(share[expected].item(), rel=1e-5)
            assert probability == pytest.approx(share[ids[piece]].item(), rel=1e-5)


def test_contexts_are_told_by_ranges_that_double(model: Model) -> None:
    found = explain(model, "The city was one of the first. " * 12, stride=1)
    rows = found.by_context()
    assert [row.label for row in rows] == ["1", "2", "3–4", "5–8", "9–16", "17–32", "33–64"]
    assert [row.tokens for row in rows[:-1]] == [1, 1, 2, 4, 8, 16]


def test_what_cannot_be_scored_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match="the text is empty"):
        explain(model, "")
    with pytest.raises(UserError, match=r"must lie in 1\.\.64"):
        explain(model, "The city", 65)


def test_the_page_shows_every_token_and_escapes_the_text(model: Model, tmp_path: Path) -> None:
    found = explain(model, EVIL)
    explained.write_page(tmp_path / "page.html", found, "runs/<img>", "<img>.txt")
    html = (tmp_path / "page.html").read_text()
    assert "<img" not in html and "<script" not in html
    assert not {"\x1b", "\u202e"} & set(html)
    assert not re.search(r"\ssrc=(?!x)|url\(|@import|<iframe|<link rel=\"stylesheet", html)
    block = html[html.index("<blockquote>") : html.index("</blockquote>")]
    assert block.count("<span ") == len(found.spans)
    assert html.count("likeliest:") == len(found.tokens)
    assert "&lt;0x0A&gt;: " in block  # the line break's title names its piece
    bpb, total = found.total.bpb, found.total
    assert f'id="bpb"><data value="{bpb}">{bpb:.4f}</data>' in html
    assert html.count(f'<data value="{total.bits}">') == 2  # at the foot of both tables
    for row in [*found.by_kind(), *found.by_context()]:
        assert f'{row.label}</th><td><data value="{row.tokens}">{row.tokens:,}</data></td>' in html


def test_lines_hold_one_token_each_whatever_is_in_it(model: Model) -> None:
    found = explain(model, EVIL)
    head, *rows = (line.split("\t") for line in explained.lines(found))
    assert len(rows) == len(found.tokens)
    assert all(len(row) == len(head) for row in rows)
    assert all(char.isprintable() for row in rows for cell in row for char in cell)
    assert sum(float(row[head.index("bits")]) for row in rows) == pytest.approx(found.total.bits, abs=0.01)


def test_a_terminal_shows_colours_and_no_commands(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(
        explained, "console", Console(file=out, force_terminal=True, color_system="standard", width=200)
    )
    explained.show_text(explain(model, EVIL))
    shown = out.getvalue()
    assert re.search("\x1b\\[30;4[0-9]+m|\x1b\\[30;10[0-9]+m|\x1b\\[97;41m", shown)
    plain = re.sub("\x1b\\[[0-9;]*m", "", shown)
    assert '<img src=x onerror="alert(1)">\\t' in plain
    assert "\\x1b[31mred\\r↵\n\\u202eevil" in plain
    assert "bits per byte of a token:  0+   0.5+ " in plain
