"""CaseOps on text alone: every text comes back, in the published form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pargolf.data.caseops import ALLCAPS, CAPNEXT, ESC, OPERATORS, TITLE, decode, encode, restore
from pargolf.system.errors import UserError

SHOWN = str.maketrans({"T": TITLE, "A": ALLCAPS, "N": CAPNEXT, "E": ESC})
texts = st.lists(
    st.one_of(st.text(max_size=5), st.text("aZbY é\n", max_size=6), st.sampled_from(OPERATORS))
).map("".join)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("the cat", "the cat"),
        ("The cat", "Tthe cat"),
        ("I am", "Ti am"),
        ("NASA, OK", "Anasa, Aok"),
        ("iPhone", "iNphone"),
        ("McDonald", "TmcNdonald"),
        ("aBC", "aNbNc"),
        ("HTMLs", "ThNtNmNls"),
        ("X2Y", "Tx2Ty"),
        ("NAÏVE Élan", "AnaÏAve Élan"),
        ("Ünder Straße", "Ünder Tstraße"),
        ("don't Don'T", "don't Tdon'Tt"),
        ("", ""),
    ],
)
def test_each_class_of_words(text: str, written: str) -> None:
    assert encode(text) == written.translate(SHOWN)
    assert decode(encode(text)) == text


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_in_the_text_are_escaped(operator: str) -> None:
    assert encode(f"{operator}The{operator}") == f"{ESC}{operator}{TITLE}the{ESC}{operator}"


@given(texts)
def test_every_text_comes_back_and_its_bytes_add_up(text: str) -> None:
    written = encode(text)
    assert decode(written) == text
    assert not any("A" <= char <= "Z" for char in written)
    original = restore(written)
    assert len(original) == len(written)
    assert sum(len(char.encode()) for char in original) == len(text.encode())


@pytest.mark.parametrize(
    "written",
    ["T", "T ", "TT", "Té", "TAa", "Aa", "A1", "aTb", "N", "Na", "aN", "aN ", "E", "Ea", "AaNb", "TaNb"],
)
def test_what_no_text_is_written_as_is_refused(written: str) -> None:
    with pytest.raises(UserError, match="malformed"):
        decode(written.translate(SHOWN))


@given(texts)
def test_whatever_is_not_refused_is_written_so(written: str) -> None:
    try:
        assert encode(decode(written)) == written
    except UserError:
        "".join(restore(written)).encode()  # can be shown all the same


def test_a_long_word_takes_no_longer_than_a_long_text() -> None:
    text = "a" * 1_000_000
    assert encode(text) == text
