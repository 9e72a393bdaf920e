"""Quantized matrices in as many bits as their probability calls for: a range coder and its model.

The model says how wide the values spread at each place of a matrix: by a level of its row plus a
level of its column, in quarter octaves. Around zero they follow Student's t at that spread,
restricted to integers; how heavy its tails are is one number for the matrix, and one more says
how often values reach the top, which a row does at least once, its scale being set by its largest
value. Nothing is learned on the way, so all values of one level are coded at once. Rows that are
nearly a fraction of an earlier row are coded less that fraction (`alike`).

A decoder elsewhere must see the very same model. So it is computed by operations that IEEE 754
rounds exactly (+, *, /, sqrt, scaling by powers of two) and turned into integers before anything
is summed up; constriction gets whole numbers, which float64 holds exactly.
"""

from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from pargolf.export.alike import Alike, find_alike, with_alike, without_alike
from pargolf.export.quantize import top_value
from pargolf.system.errors import UserError, require

LEVELS = 128
QUARTERS = np.sqrt(np.sqrt(np.array([1.0, 2.0, 4.0, 8.0])))  # of an octave
TAILS = range(1, 8)
ENDS = range(1, 21)
SHAPES = list(product(TAILS, ENDS))
ROUNDS = 2  # of fitting columns, rows and shape in turn; a third saves less than 0.01 %
FINE = 1024  # parts of a bit in which the fit counts: whole numbers, whose sums have no order


@dataclass(frozen=True)
class ValueModel:
    """Which values are likely where."""

    rows: NDArray[np.uint8]
    """(rows,) the level of each row."""
    cols: NDArray[np.uint8]
    """(cols,) that of each column; a value's own level is the sum, below LEVELS."""
    tail: int
    """Student's t with 2**tail - 1 degrees of freedom: 1 is Cauchy, 7 is close to Gauss."""
    ends: int
    """About 2**-ends of the values reach the top, beside those that the t has there."""
    alike: Alike | None = None
    """Rows that are coded less a fraction of an earlier one, where that saves bits."""


def frequencies(levels: NDArray[np.integer], tail: int, ends: int, top: int) -> NDArray[np.int64]:
    """(len(levels), 2 top + 1): relative frequencies of -top..top at each level, at least 1."""
    spread = np.ldexp(QUARTERS[levels % 4], levels.astype(np.int64) // 4 - 12)
    z = np.arange(-top, top + 1) / spread[:, None]
    with np.errstate(over="ignore"):  # infinitely unlikely
        inverse = 1 + z * z / (2**tail - 1)
        for _ in range(tail - 1):  # to the power of (degrees of freedom + 1) / 2
            inverse = inverse * inverse
    found = np.floor(2**20 / inverse).astype(np.int64) + 1
    found[:, [0, -1]] += (found.sum(axis=1) >> (ends + 1))[:, None]
    return found


def encode_matrix(values: NDArray[np.int8], bits: int) -> tuple[bytes, ValueModel]:
    """(rows, cols) values in -top..top -> their code, and the model that decodes it.

    The same values give the same code.
    """
    top = top_value(bits)
    alike = find_alike(values)
    rest = values if alike is None else without_alike(values, alike, top)
    model = fit(np.abs(rest).astype(np.uint8), top)
    return _encode(rest, *_by_level(model, top), top), replace(model, alike=alike)


def decode_matrix(code: bytes, model: ValueModel, bits: int) -> NDArray[np.int8]:
    """The (rows, cols) values that `encode_matrix` made `code` of; UserError if it did not make it.

    Allocates a few bytes for each place of the matrix that the model is for.
    """
    require(len(code) % 4 == 0, "the range-coded values are cut off")
    require(model.tail in TAILS and model.ends in ENDS, "the range coder's model has no such shape")
    require(int(model.rows.max()) + int(model.cols.max()) < LEVELS, f"a level is not below {LEVELS}")
    top = top_value(bits)
    values = np.empty((len(model.rows), len(model.cols)), np.int8)
    places, distributions = _by_level(model, top)
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(code, "<u4").astype(np.uint32))
    try:
        for where, distribution in zip(places, distributions, strict=True):
            symbols = decoder.decode(distribution, len(where))
            symbols -= top
            values.reshape(-1)[where] = symbols
    except AssertionError:
        raise UserError("the range-coded values are corrupt") from None
    # Past its end a code reads as zeros; only encoding again, the quicker way, tells.
    again = _encode(values, places, distributions, top)
    require(again == code, "the range-coded values are cut off or too long")
    return values if model.alike is None else with_alike(values, model.alike, top)


def _encode(
    values: NDArray[np.int8], places: list[NDArray[np.int64]], distributions: list[Any], top: int
) -> bytes:
    encoder = constriction.stream.queue.RangeEncoder()
    for where, distribution in zip(places, distributions, strict=True):
        encoder.encode(np.add(values.reshape(-1)[where], top, dtype=np.int32), distribution)
    code: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return code


def fit(magnitudes: NDArray[np.uint8], top: int) -> ValueModel:
    """The model under which (rows, cols) magnitudes take the fewest bits, or nearly so."""
    size = np.sqrt(np.mean(np.square(magnitudes, dtype=np.float32), axis=1))
    middle = 32  # of the columns' levels: room for one that is dead, 2**8 times smaller than others
    rows = np.clip(np.rint(4 * np.log2(size + 1e-3)) + 48 - middle, 0, LEVELS - 1 - 2 * middle)
    model = ValueModel(rows.astype(np.uint8), np.full(magnitudes.shape[1], middle, np.uint8), 7, 8)
    turned = np.ascontiguousarray(magnitudes.T)
    for _ in range(ROUNDS):
        costs = _costs(top)[SHAPES.index((model.tail, model.ends))]
        cols = _best_levels(turned, model.rows, costs)
        rows = _best_levels(magnitudes, cols, costs)
        model = _best_shape(magnitudes, rows, cols, top)
    return model


def _by_level(model: ValueModel, top: int) -> tuple[list[NDArray[np.int64]], list[Any]]:
    """For each level in use: where it is in the matrix, flattened, and the distribution there."""
    levels = (model.rows[:, None] + model.cols).reshape(-1)
    counts = np.bincount(levels, minlength=LEVELS)
    used = np.flatnonzero(counts)
    places = np.split(np.argsort(levels, kind="stable"), counts[used].cumsum()[:-1])
    table = frequencies(used, model.tail, model.ends, top).astype(np.float64)
    return places, [constriction.stream.model.Categorical(weights, perfect=False) for weights in table]


@cache
def _costs(top: int) -> NDArray[np.float64]:
    """(shapes, LEVELS, top + 1): the cost of each magnitude by shape and level, in whole parts of a bit."""
    found = np.stack([frequencies(np.arange(LEVELS), tail, ends, top) for tail, ends in SHAPES])
    return np.rint(FINE * np.log2(found.sum(axis=2, keepdims=True) / found[:, :, top:]))


def _best_levels(
    magnitudes: NDArray[np.uint8], across: NDArray[np.uint8], costs: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """The level of each row at which it costs least, given those of the columns."""
    n_rows, width = len(magnitudes), costs.shape[1]
    room = LEVELS - int(across.max())
    cost = np.zeros((n_rows, room))
    first = np.arange(n_rows)[:, None] * width
    for level in np.unique(across):
        cells = first + magnitudes[:, across == level]
        counts = np.bincount(cells.ravel(), minlength=n_rows * width).reshape(n_rows, width)
        cost += counts.astype(np.float64) @ costs[level : level + room].T
    levels = cost.argmin(axis=1)
    for _ in range(2):  # a level that few rows have costs more to write down
        shares = np.bincount(levels, minlength=room) + 1
        levels = (cost + np.rint(FINE * np.log2(n_rows / shares))).argmin(axis=1)
    return levels.astype(np.uint8)


def _best_shape(
    magnitudes: NDArray[np.uint8], rows: NDArray[np.uint8], cols: NDArray[np.uint8], top: int
) -> ValueModel:
    cells = (rows[:, None] + cols).astype(np.int64) * (top + 1) + magnitudes
    counts = np.bincount(cells.reshape(-1), minlength=LEVELS * (top + 1)).reshape(LEVELS, top + 1)
    cost = np.tensordot(_costs(top), counts)
    return ValueModel(rows, cols, *SHAPES[cost.argmin()])
