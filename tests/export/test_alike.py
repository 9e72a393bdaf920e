"""Rows coded less a fraction of an earlier row: exact, found where they save, else refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pargolf.export.alike import find_alike, with_alike, without_alike
from pargolf.export.entropy import decode_matrix, encode_matrix
from pargolf.system.errors import UserError


def normal(rows: int, cols: int, seed: int = 0) -> NDArray[np.int8]:
    return np.rint(np.random.default_rng(seed).normal(0, 5, (rows, cols))).clip(-31, 31).astype(np.int8)


def with_followers(rows: int, cols: int) -> NDArray[np.int8]:
    """Half of the rows are -3/4 of the first, or of a row before them, and a little noise."""
    values = normal(rows, cols)
    rng = np.random.default_rng(1)
    for row in range(1, rows, 2):
        noise = rng.normal(0, 0.8, cols)
        values[row] = np.rint(-0.75 * values[row - 1 if row % 4 == 1 else 0] + noise).clip(-31, 31)
    return values


def test_rows_that_follow_others_take_fewer_bits() -> None:
    values = with_followers(64, 256)
    code, model = encode_matrix(values, 6)
    assert model.alike is not None
    source, eighths = model.alike
    assert np.all(source < np.arange(64).clip(1)) and np.all(eighths[1::2] != 0)
    assert eighths[1] == -6
    # Of a normal row the odd ones keep noise of 0.8 alone, for 5: 2.6 bits a value less.
    apart = len(encode_matrix(values[::2], 6)[0]) + len(encode_matrix(normal(32, 256, 2), 6)[0])
    assert len(code) < apart - 2.2 * 32 * 256 / 8
    assert np.array_equal(decode_matrix(code, model, 6), values)


@pytest.mark.parametrize(("rows", "cols"), [(1, 300), (700, 4), (700, 100), (100, 700)])
def test_rows_of_their_own_stay_as_they_are(rows: int, cols: int) -> None:
    assert find_alike(normal(rows, cols)) is None
    assert find_alike(np.zeros((rows, cols), np.int8)) is None


def test_wide_columns_do_not_make_rows_alike() -> None:
    values = normal(400, 256)
    values[:, 4:] //= 5  # four columns have nearly all of a row's length
    assert find_alike(values) is None


def test_rows_in_other_blocks_are_found() -> None:
    values = normal(1200, 128)
    values[600:] = values[:600]
    alike = find_alike(values)
    assert alike is not None
    assert np.array_equal(alike[0, 600:], np.arange(600)) and np.all(alike[1, 600:] == 8)
    assert not alike[:, :600].any()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 9), cols=st.integers(1, 9), bits=st.integers(1, 8),
    eighths=st.sampled_from([(-128, 128), (-(2**15), 2**15)]),
)  # fmt: skip
def test_any_fractions_of_earlier_rows_come_back(
    seed: int, rows: int, cols: int, bits: int, eighths: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    top = max(1, 2 ** (bits - 1) - 1)
    values = rng.integers(-top, top + 1, (rows, cols)).astype(np.int8)
    alike = np.stack((rng.integers(0, np.arange(rows).clip(1)), rng.integers(*eighths, rows))).astype(
        np.int16
    )
    alike[1, 0] = 0
    rest = without_alike(values, alike, top)
    assert rest.dtype == np.int8 and np.abs(rest.astype(int)).max() <= top
    assert np.array_equal(with_alike(rest, alike, top), values)


def test_what_is_added_is_known() -> None:
    """Files made elsewhere must decode here."""
    rest = np.array([[31, -31, 5, 0, -1], [30, 2, -3, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], np.int8)
    alike = np.array([[0, 0, 1, 2], [0, 3, -8, 127]], np.int16)
    assert with_alike(rest, alike, 31).tolist() == [
        [31, -31, 5, 0, -1],
        [-21, -10, -1, 1, 0],
        [21, 10, 1, -1, 0],
        [19, -29, 17, -15, 1],
    ]


@pytest.mark.parametrize("source", [1, 2, 3, -1, 2**15 - 1])
def test_a_row_like_a_later_one_is_refused(source: int) -> None:
    alike = np.array([[0, source, 0], [0, 8, 8]], np.int16)
    with pytest.raises(UserError, match="like none before it"):
        with_alike(np.ones((3, 4), np.int8), alike, 31)
