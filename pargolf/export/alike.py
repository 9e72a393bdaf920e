"""Rows of a matrix that are nearly a fraction of an earlier row, and what is left of them without it.

Embeddings have such rows: tokens that training never saw all went the same way, and tokens of like
use are alike. Only integers are added and subtracted, so every machine restores the same values.
"""

import numpy as np
from numpy.typing import NDArray

from pargolf.system.errors import require

EIGHTHS = 8  # finer fractions cost as much as they save
NOTE_BITS = 16  # about what a row's two entries take
LEAST_BITS = 1024  # less than that is not worth a part of the file
UNIT = 16  # root mean square of a column where rows are compared, so that no wide column decides
BLOCK = 512  # rows compared at a time
EXACT = 2**24  # below it float32 sums integers without an error, in any order
FARTHEST = 2**15  # a row's number is an int16 in the file

# (2, rows): an earlier row for each row, and eighths of it; 0 eighths for a row of its own.
Alike = NDArray[np.int16]


def find_alike(values: NDArray[np.int8]) -> Alike | None:
    """The rows of (rows, cols) that take fewer bits less a fraction of an earlier one; None if too few do.

    A row whose correlation with the earlier one is r saves cols/2 log2(1 / (1 - r^2)) bits where
    both are normal. Allocates a few times BLOCK numbers for each row.
    """
    n_rows, cols = values.shape
    widths = np.sqrt(np.mean(np.square(values, dtype=np.float64), axis=0))
    known = np.rint(values * (UNIT / np.maximum(widths, 1)))  # whole numbers, whose sums have no order
    norms = np.square(known).sum(axis=1)
    known = known.astype(np.float32 if norms.max() < EXACT else np.float64)
    alike = np.zeros((2, n_rows), np.int16)
    saved = 0.0
    for start in range(0, n_rows, BLOCK):
        rows = np.arange(start, min(start + BLOCK, n_rows))
        earlier = min(start + BLOCK, n_rows, FARTHEST)
        products = np.tril(known[rows] @ known[:earlier].T, start - 1).astype(np.float64)
        explained = np.square(products) / np.maximum(norms[:earlier], 1)
        best = explained.argmax(axis=1)
        at = np.arange(len(rows)), best
        eighths = np.rint(EIGHTHS * products[at] / np.maximum(norms[best], 1)).clip(-128, 127)
        left = 1 - explained[at] / np.maximum(norms[rows], 1)
        bits = -cols / 2 * np.log2(np.maximum(left, 2.0**-20)) - NOTE_BITS
        taken = (bits > 0) & (eighths != 0)
        alike[:, rows] = np.where(taken, (best, eighths), 0)
        saved += bits[taken].sum()
    return alike if saved > LEAST_BITS else None


def without_alike(values: NDArray[np.int8], alike: Alike, top: int) -> NDArray[np.int8]:
    """(rows, cols) in -top..top less their fractions of earlier rows, modulo the number of values."""
    return _wrap(values - _parts(values[alike[0]], alike[1]), top)


def with_alike(rest: NDArray[np.int8], alike: Alike, top: int) -> NDArray[np.int8]:
    """What `without_alike` made `rest` (rows, cols) of; UserError if a row is said to be like a later one."""
    source, eighths = alike
    taken = np.flatnonzero(eighths)
    require(bool(np.all((source[taken] >= 0) & (source[taken] < taken))), "a row is like none before it")
    values = rest.copy()
    for row in taken:  # in turn, as a row may be like one that is restored itself
        values[row] = _wrap(rest[row] + _parts(values[source[row]], eighths[row]), top)
    return values


def _parts(rows: NDArray[np.int8], eighths: NDArray[np.int16]) -> NDArray[np.int32]:
    return (eighths.astype(np.int32)[..., None] * rows + EIGHTHS // 2) // EIGHTHS


def _wrap(values: NDArray[np.int32], top: int) -> NDArray[np.int8]:
    return np.asarray((values + top) % (2 * top + 1) - top, np.int8)
