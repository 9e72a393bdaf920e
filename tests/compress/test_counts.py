import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pargolf.compress.counts import DISCOUNT, ORDERS, START, Followers

VOCAB = 7
texts = st.lists(st.integers(0, VOCAB - 1), max_size=60)


def read(text: list[int]) -> Followers:
    followers = Followers(VOCAB)
    for at, token in enumerate(text):
        followers.count(text[max(0, at - max(ORDERS)) : at], token)
    return followers


def by_definition(text: list[int], history: list[int]) -> np.ndarray:
    """The distribution by its formula, from counts that are taken out of the text anew."""
    alone = np.full(VOCAB, START)
    for at, token in enumerate(text):
        alone[token] += counted(text, at, 0)
    shares = alone / alone.sum()
    for order in ORDERS:
        times = np.zeros(VOCAB)
        for at, token in enumerate(text):
            if text[max(0, at - order) : at] == history[-order:] and counted(text, at, order):
                times[token] += 1
        if times.sum():
            kinds = (times > 0).sum()
            shares = np.maximum(times - DISCOUNT, 0) / times.sum() + DISCOUNT * kinds / times.sum() * shares
    return shares


def counted(text: list[int], at: int, order: int) -> bool:
    """Whether the token at `at` counts in its context of `order`: no longer one had had it before."""
    longer = [o for o in ORDERS if o > order]
    return not any(
        text[max(0, i - o) : i] == text[max(0, at - o) : at] and text[i] == text[at] and counted(text, i, o)
        for o in longer
        for i in range(at)
    )


@given(texts, texts)
def test_it_is_a_distribution_that_leaves_no_token_out(text: list[int], history: list[int]) -> None:
    shares, known = read(text).predict(history[-max(ORDERS) :])
    assert shares.min() > 0 and shares.sum() == pytest.approx(1)
    assert 0 <= known <= len(ORDERS)


@given(st.lists(st.integers(0, 2), max_size=14))
def test_it_is_the_one_of_the_formula(text: list[int]) -> None:
    history = text[-max(ORDERS) :]
    assert read(text).predict(history)[0] == pytest.approx(by_definition(text, history))


def test_a_phrase_that_was_there_is_expected_again() -> None:
    phrase = [1, 2, 3, 4, 5, 6]
    shares, known = read([*phrase, 0, *phrase, 0, *phrase]).predict(phrase)
    assert known == len(ORDERS) and shares.argmax() == 0 and shares[0] > 0.5


def test_prediction_counts_nothing() -> None:
    followers = read([1, 2, 1, 2])
    first = followers.predict([1, 2])[0]
    assert (followers.predict([1, 2])[0] == first).all()
    assert followers.predict([5])[1] == 0 and followers.predict([5])[1] == 0
