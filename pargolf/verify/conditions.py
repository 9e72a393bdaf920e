"""What is tried on a score, and what is held against it: one row for each condition."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pargolf.data.text import Text, decoded

SUM_TOLERANCE = 1e-5  # of the probabilities at one position, from 1

# Two calls of one shape run the same kernels, which round each position alike, whatever stands at
# the others: what is compared below should be equal bit for bit, and for pargolf's models it is.
# The tolerance, in nats, is for models whose shapes follow the content (experts): float32 sums in
# another order differ by about 1e-6. A leak as small as this moves val_loss by no more than the
# same 1e-5, 1/500 of what a record must win by.
LOGPROB_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Condition:
    """One condition and what was measured for it."""

    condition: str
    holds: bool | None
    """None: it cannot be told, since the model does not repeat itself."""
    tried: int
    """Positions looked at; tokens of the whole stream for the accounting."""
    deviation: float | None
    """Largest one, in nats, probability or bytes; None if it was not measured or is no number."""
    tolerance: float
    measured: str
    """The same in words."""


@dataclass(frozen=True)
class Verdict:
    """One row for each condition."""

    rows: tuple[Condition, ...]

    @property
    def valid(self) -> bool:
        """Every condition holds, and none is unknown."""
        return all(row.holds for row in self.rows)


def bytes_of_text(text: Text) -> int:
    """UTF-8 bytes of the original text, without the first token's."""
    first = text.tokenizer.decode_bytes(text.tokens[:1])
    return len(decoded(text.tokens, text.tokenizer)) - len(first)


def compared(condition: str, tried: int, what: str, deviation: float | None) -> Condition:
    if deviation is None:
        measured = "cannot be told, since the model gives other numbers each time"
        return Condition(condition, None, 0, None, LOGPROB_TOLERANCE, measured)
    found = f"log-probabilities differ by up to {deviation:.1e} nats" if deviation else "equal bit for bit"
    holds = deviation <= LOGPROB_TOLERANCE
    return Condition(condition, holds, tried, finite(deviation), LOGPROB_TOLERANCE, f"{what}: {found}")


def difference(a: Tensor, b: Tensor) -> float:
    """Largest |a - b|; equal infinities and two NaNs do not differ, NaN and number do without bound."""
    same = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(same, 0.0, (a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf)).max())


def finite(deviation: float) -> float | None:
    return deviation if math.isfinite(deviation) else None
