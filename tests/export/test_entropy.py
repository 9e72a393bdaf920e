"""The range coder: exact, near the entropy, the same on every machine, safe against strangers."""

import hashlib
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pargolf.config.schema import ExportConfig
from pargolf.export.entropy import LEVELS, TAILS, ValueModel, decode_matrix, encode_matrix, frequencies
from pargolf.export.quantize import quantize_rows
from pargolf.system.errors import UserError


def matrix(seed: int, rows: int, cols: int, bits: int, dead: float = 0.0) -> NDArray[np.int8]:
    """Heavy-tailed rows, each reaching the top, with columns of different widths."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(4, (rows, cols)) * np.exp2(rng.normal(0, 1, cols)) * (rng.random(cols) >= dead)
    top = 2 ** (bits - 1) - 1
    widest = np.abs(x).max(axis=1, keepdims=True)
    return np.rint(x / np.where(widest, widest, 1) * top).astype(np.int8)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 9), cols=st.integers(1, 40), bits=st.integers(2, 8),
    dead=st.sampled_from([0.0, 0.5, 1.0]),
)  # fmt: skip
def test_round_trip(seed: int, rows: int, cols: int, bits: int, dead: float) -> None:
    values = matrix(seed, rows, cols, bits, dead)
    code, model = encode_matrix(values, bits)
    assert encode_matrix(values, bits)[0] == code
    back = decode_matrix(code, model, bits)
    assert back.dtype == np.int8 and np.array_equal(back, values)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), bits=st.integers(2, 8))
def test_any_values_round_trip(data: st.DataObject, bits: int) -> None:
    top = 2 ** (bits - 1) - 1
    cols = data.draw(st.integers(1, 5))
    row = st.lists(st.integers(-top, top), min_size=cols, max_size=cols)
    values = np.array(data.draw(st.lists(row, min_size=1, max_size=5)), dtype=np.int8)
    code, model = encode_matrix(values, bits)
    assert np.array_equal(decode_matrix(code, model, bits), values)


def plain_frequency(level: int, tail: int, ends: int, top: int) -> list[int]:
    """The same by Python's floats, one after the other: IEEE 754 as well, and no library."""
    spread = math.ldexp(math.sqrt(math.sqrt(2.0 ** (level % 4))), level // 4 - 12)
    found = []
    for x in range(-top, top + 1):
        z = x / spread
        inverse = 1 + z * z / (2**tail - 1)
        for _ in range(tail - 1):
            inverse = inverse * inverse
        found.append(math.floor(2**20 / inverse) + 1)
    extra = sum(found) >> (ends + 1)
    return [found[0] + extra, *found[1:-1], found[-1] + extra]


@settings(max_examples=60, deadline=None)
@given(
    level=st.integers(0, LEVELS - 1), tail=st.sampled_from(TAILS), ends=st.integers(1, 20),
    bits=st.integers(2, 8),
)  # fmt: skip
def test_the_model_is_arithmetic_that_rounds_in_one_way(level: int, tail: int, ends: int, bits: int) -> None:
    top = 2 ** (bits - 1) - 1
    found = frequencies(np.array([level], np.uint8), tail, ends, top)
    assert found.tolist() == [plain_frequency(level, tail, ends, top)]
    # It is Student's t, but for rounding and what is added at the ends.
    freedom, spread = 2**tail - 1, 2.0 ** (level / 4 - 12)
    middle = np.arange(-top + 1, top)
    density = (1 + (middle / spread) ** 2 / freedom) ** (-(freedom + 1) / 2)
    assert np.all(np.abs(found[0, 1:-1] - 2**20 * density) <= 1 + 1e-6 * 2**20 * density)


def test_the_code_of_some_values_is_known() -> None:
    """Files made elsewhere must decode here: neither the frequencies nor the code may ever change."""
    table = frequencies(np.arange(LEVELS), 5, 9, 31)
    assert hashlib.sha256(table.astype("<i8").tobytes()).hexdigest()[:16] == "986bf391026281ac"
    model = ValueModel(np.array([30, 32], np.uint8), np.array([31, 34, 28, 30, 29], np.uint8), 5, 9)
    values = decode_matrix(bytes.fromhex("708f357fe8e21e6e"), model, 6)
    assert values.tolist() == [[3, -12, 0, 5, -1], [31, -2, 7, -31, 1]]


@pytest.mark.parametrize(("freedom", "bits"), [(5, 6), (9, 4), (10**6, 6), (10**6, 8)])
def test_values_take_about_their_entropy(freedom: int, bits: int) -> None:
    """Against what a coder that knows the distribution needs: one row after the other, no end of them."""
    rng = np.random.default_rng(0)
    top = 2 ** (bits - 1) - 1
    x = np.clip(np.rint(rng.standard_t(freedom, (256, 1024)) * top / 5), -top, top).astype(np.int8)
    often = rng.standard_t(freedom, 4_000_000)
    share = np.bincount((np.clip(np.rint(often * top / 5), -top, top) + top).astype(int)) / len(often)
    entropy = -np.sum(share * np.log2(share, where=share > 0, out=np.zeros_like(share)))
    code, model = encode_matrix(x, bits)
    assert 8 * (len(code) + 40) / x.size < 1.005 * entropy
    assert len(np.unique(model.cols)) <= 3  # there is nothing to tell columns apart by


def test_columns_of_different_widths_are_told_apart() -> None:
    rng = np.random.default_rng(1)
    widths = np.repeat([10.0, 1.0], 256)
    x = np.clip(np.rint(rng.normal(size=(256, 512)) * widths), -31, 31).astype(np.int8)
    bits = 0.0
    for half in (x[:, :256], x[:, 256:]):
        counts = np.unique(half, return_counts=True)[1]
        bits -= np.sum(counts * np.log2(counts / half.size))
    code, model = encode_matrix(x, 6)
    assert 8 * len(code) < 1.01 * bits
    assert model.cols[:256].min() > model.cols[256:].max() + 8


@settings(max_examples=150, deadline=None)
@given(
    code=st.binary(max_size=60), rows=st.lists(st.integers(0, 255), min_size=1, max_size=5),
    cols=st.lists(st.integers(0, 255), min_size=1, max_size=5), tail=st.integers(0, 255),
    ends=st.integers(0, 255), bits=st.integers(2, 8),
)  # fmt: skip
def test_any_bytes_are_values_or_an_error(
    code: bytes, rows: list[int], cols: list[int], tail: int, ends: int, bits: int
) -> None:
    model = ValueModel(np.array(rows, np.uint8), np.array(cols, np.uint8), tail, ends)
    for fair in (model, ValueModel(model.rows % 64, model.cols % 64, 1 + tail % 7, 1 + ends % 20)):
        try:
            values = decode_matrix(code, fair, bits)
        except UserError:
            continue
        assert values.shape == (len(rows), len(cols)) and np.abs(values.astype(int)).max() < 2 ** (bits - 1)
        assert len(code) <= 8 * values.size + 8  # none that does nothing


def test_cut_off_or_extended_code_is_refused() -> None:
    values = matrix(0, 20, 30, 6)
    code, model = encode_matrix(values, 6)
    for bad in (b"", code[:-1], code[:-4], code[: len(code) // 8 * 4], code + bytes(4), code + code):
        with pytest.raises(UserError, match="range-coded"):
            decode_matrix(bad, model, 6)


def test_decoding_allocates_by_the_size_of_the_matrix() -> None:
    model = ValueModel(np.full(500, 30, np.uint8), np.full(400, 30, np.uint8), 5, 9)
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            decode_matrix(b"", replace(model, rows=model.rows + 98), 6)
        assert tracemalloc.get_traced_memory()[1] < 50_000
        with pytest.raises(UserError):
            decode_matrix(bytes(8), model, 6)
        assert tracemalloc.get_traced_memory()[1] < 16 * 200_000
    finally:
        tracemalloc.stop()


def test_ternary_values_take_little_more_than_log2_of_3_bits() -> None:
    q = quantize_rows(torch.randn(128, 256, generator=torch.Generator().manual_seed(1)), 2, ExportConfig())
    code, model = encode_matrix(q.values.numpy(), 2)
    shares = np.unique(q.values.numpy(), return_counts=True)[1] / q.values.numel()
    entropy = -np.sum(shares * np.log2(shares))
    assert 8 * len(code) / q.values.numel() < entropy + 0.02 < np.log2(3) + 0.02
    assert np.array_equal(decode_matrix(code, model, 2), q.values.numpy())
