"""How finely to round, for a file of so many bytes or a loss of so many bits.

One number decides: the price, in nats of a token's loss a bit of the file. Each row of each matrix
is rounded as finely as that price makes worth while (see `gptq.prepare`), so bytes go where they
help most, and a weight is gone where not even a small step would pay.
"""

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from pargolf.config.kinds import TENSOR_KINDS, Slot
from pargolf.export.quantize import Quantized, to_floats
from pargolf.fit.gptq import Moments, PreparedMatrix, prepare, quantize_at
from pargolf.system.progress import OnProgress, unseen

# Tensors by name: ready for `state_at`, and in the form in which they are stored.
Prepared = Mapping[str, PreparedMatrix | Tensor]
Stored = Mapping[str, Quantized | Tensor]

# Logarithms of the least and the largest price that are tried: far beyond where every row has its
# finest step, and where every weight is zero.
LOWEST = -40.0
HIGHEST = 5.0
CLOSE_SIZE = 0.0005  # share of the limit: near enough to it
CLOSE_LOSS = 0.02
NARROW = 1e-5  # logarithms of prices this near give the same file, or nearly
USUAL_STEPS = 10


def prepare_state(
    state: Mapping[str, Tensor], slots: Mapping[str, Slot], moments: Mapping[str, Moments]
) -> dict[str, PreparedMatrix | Tensor]:
    """Every tensor ready for `state_at`: "vector" by its role as float16, the others by their moments."""
    return {
        name: to_floats(tensor, 16, name)
        if TENSOR_KINDS[slots[name].kind].role == "vector"
        else prepare(tensor, moments[name])
        for name, tensor in state.items()
    }


def state_at(prepared: Prepared, price: float) -> dict[str, Quantized | Tensor]:
    """Every tensor in the form in which it is stored, at `price` in nats a bit."""
    return {name: x if isinstance(x, Tensor) else quantize_at(x, price, name) for name, x in prepared.items()}


def fit_bytes(size: Callable[[float], int], limit: int, progress: OnProgress = unseen) -> float:
    """The lowest price, nearly, at which `size` (at a price) is at most `limit` bytes.

    The file fills the limit except for CLOSE_SIZE of it, or is the finest there is. If even the coarsest,
    of zeros, is larger, this is the highest price.
    """
    log_price = _least(lambda x: size(math.exp(x)), limit, LOWEST, HIGHEST, CLOSE_SIZE, progress)
    return math.exp(HIGHEST if log_price is None else log_price)


def fit_loss(loss: Callable[[float], float], most: float, progress: OnProgress = unseen) -> float:
    """The highest price, nearly, at which `loss` (at a price) is at most `most`; if none, the lowest."""
    fineness = _least(lambda x: loss(math.exp(-x)), most, -HIGHEST, -LOWEST, CLOSE_LOSS, progress)
    return math.exp(LOWEST if fineness is None else -fineness)


def _least(
    measure: Callable[[float], float],
    limit: float,
    low: float,
    high: float,
    close: float,
    progress: OnProgress,
) -> float | None:
    """The least x from low to high, nearly, where a falling `measure` is at most `limit`; None if nowhere.

    Ends where it is less than `close`, a share, below the limit. Interpolates, and halves what is
    left after two steps to the same side.
    """
    below = measure(high)
    if below > limit:
        return None
    above = measure(low)
    if above <= limit:
        return low
    sides: list[bool] = []
    while below < (1 - close) * limit and high - low > NARROW:
        share = (above - (1 - close / 2) * limit) / (above - below)
        x = low + (high - low) * (0.5 if len(set(sides[-2:])) < 2 else share)
        value = measure(x)
        sides.append(value <= limit)
        if sides[-1]:
            high, below = x, value
        else:
            low, above = x, value
        progress(len(sides), max(len(sides) + 1, USUAL_STEPS))
    return high
