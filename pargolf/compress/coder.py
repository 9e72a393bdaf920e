"""From logits to integers, and from integers to bytes: probabilities in fixed point, and a range coder.

The range coder is constriction's (https://bamler-lab.github.io/constriction, "queue"). It takes
probabilities as floats and makes them integers by a rule of its own, which does nothing to the
values it is given here (see `counts`), so that the code depends on integers alone.
"""

import constriction
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pargolf.system.errors import UserError, require

PRECISION = 24  # constriction's: probabilities are multiples of 2^-24
WORD = np.dtype("<u4")  # what the range coder writes

Counts = NDArray[np.float32]


def counts(logits: Tensor) -> Counts:
    """logits (B, V) -> (B, V) whole numbers >= 0, each row adding up to 2^24 - V exactly.

    Token t has the probability (1 + counts[t]) / 2^24, so every token can be coded. With the sum
    C_t of the softmax over tokens 0 .. t, counts[t] = floor(C_t / C_V * (2^24 - V)) - the same of
    t - 1: rounding never decreases, so no count is negative, and the last C_t / C_V is 1.

    The float32 of the result are exact, and so are all their sums: none passes 2^24. constriction
    gives token t the interval from floor(s * sum of counts before t) + t on, with
    s = (2^24 - V) / (sum of all counts), here 1: its floats round nothing.

    Raises UserError if a logit is no number.
    """
    free = (1 << PRECISION) - logits.size(-1)
    below = logits.softmax(-1).cumsum(-1)
    total = below[:, -1:]
    require(bool(total.isfinite().all()), "the model's logits are not finite: it cannot predict this file")
    below = (below / total * free).floor_()
    below[:, 1:] -= below[:, :-1].clone()
    result: Counts = below.numpy()
    return result


def bits(table: Counts, symbols: NDArray[np.int64]) -> float:
    """The information of `symbols` (B,) under `table` (B, V), in bits: what coding them adds to a code."""
    chosen = table[np.arange(len(symbols)), symbols].astype(np.float64)
    return float(PRECISION * len(symbols) - np.log2(chosen + 1).sum())


class Encoder:
    """Writes tokens, some with each call, each with a distribution of its own."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()
        self._family = constriction.stream.model.Categorical(perfect=False)

    def write(self, table: Counts, symbols: NDArray[np.int64]) -> None:
        """Append `symbols` (B,), distributed by `table` (B, V)."""
        self._coder.encode(symbols.astype(np.int32), self._family, table)

    def finish(self) -> bytes:
        """Everything written, as little-endian 32-bit words."""
        return bytes(self._coder.get_compressed().astype(WORD).tobytes())


class Decoder:
    """Reads back what an Encoder wrote, given the same tables in the same order."""

    def __init__(self, payload: bytes) -> None:
        require(len(payload) % WORD.itemsize == 0, "the coded tokens are no whole words")
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(payload, WORD).astype(np.uint32))
        self._family = constriction.stream.model.Categorical(perfect=False)
        self._bits_left = 8.0 * len(payload) + 128  # the ends of a code round up or down by a few words

    def read(self, table: Counts) -> NDArray[np.int64]:
        """The next B tokens, distributed by `table` (B, V).

        Raises UserError where more is read than was ever written: the tables are others, or so many
        tokens were never there.
        """
        try:
            symbols: NDArray[np.int64] = self._coder.decode(self._family, table).astype(np.int64)
        except (AssertionError, ValueError) as error:
            raise UserError(f"the coded tokens make no sense: {error}") from None
        self._bits_left -= bits(table, symbols)
        require(self._bits_left >= 0, "more tokens than the file can hold")
        return symbols
