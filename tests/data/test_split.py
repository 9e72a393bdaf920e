"""Which documents are held out: by the hash of their text alone, equal ones together."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pargolf.data.split import choose_validation, joined, sample, survey
from pargolf.system.errors import UserError


def split(documents: list[str], fraction: float, most_bytes: int = 0) -> tuple[list[str], list[str]]:
    held_out = choose_validation(survey(documents), fraction, most_bytes)
    pairs = list(zip(documents, held_out, strict=True))
    return [text for text, out in pairs if not out], [text for text, out in pairs if out]


def test_the_smallest_hashes_in_their_order() -> None:
    documents = [f"text {i}" for i in range(20)]
    train, val = split(documents, 0.25)
    by_hash = sorted(documents, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    assert set(val) == set(by_hash[:5])
    assert val == [text for text in documents if text in val]
    assert train == [text for text in documents if text not in val]
    assert len(split(documents, 0.001)[1]) == 1
    assert len(split(documents, 0.999)[0]) == 1


@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40), st.floats(0.01, 0.99), st.integers(0, 9)
)
def test_equal_documents_stay_on_one_side(documents: list[str], fraction: float, most: int) -> None:
    if len(set(documents)) < 2:
        with pytest.raises(UserError, match="are equal"):
            split(documents, fraction, most)
        return
    train, val = split(documents, fraction, most)
    assert train and val and not set(train) & set(val)
    assert sorted(train + val) == sorted(documents)
    alone = len({text for text in documents if text == val[0]}) == len(set(val))
    assert len(val) <= max(1, round(fraction * len(documents))) or alone
    assert not most or len("".join(val)) <= most or alone
    assert survey(documents).equal == len(documents) - len(set(documents))


def test_rejects() -> None:
    with pytest.raises(UserError, match="separator"):
        split(["a"], 0.1)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="between 0 and 1"):
            split(["a", "b"], fraction)


def test_a_sample_fits_and_is_chosen_by_hash() -> None:
    documents = [f"document {i:03d}" for i in range(50)]
    found, among = survey(documents), np.arange(50) % 2 == 0
    chosen = sample(found, among, 130)
    assert chosen.sum() == 10 and not (chosen & ~among).any()
    assert not (chosen & ~sample(found, among, 400)).any()
    assert sample(found, among, 10_000).tolist() == among.tolist()
    assert sample(found, among, 1).sum() == 1


def test_surveys_join() -> None:
    both = joined(survey(["a", "bc"]), survey(["a"]))
    assert both.sizes.tolist() == [1, 2, 1] and both.equal == 1
    assert both.sha256 != joined(survey(["a"]), survey(["bc", "a"])).sha256
