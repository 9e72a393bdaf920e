"""How finely to round, for a file of so many bytes or a loss of so many bits.

One number decides: the price, in nats of a token's loss a bit of the file. Each row of each matrix
is rounded as finely as that price makes worth while (see `gptq.prepare`), so bytes go where they
help most, and a weight is gone where not even a small step would pay.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache

import torch
from scipy import optimize
from torch import Tensor

from pargolf.config.kinds import TENSOR_KINDS, Slot
from pargolf.export.quantize import Quantized, to_floats
from pargolf.fit.gptq import ALL_ZERO, Moments, PreparedMatrix, prepare, quantize_at
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
NARROW = 3e-5  # share of what is expected: points this near differ by chance alone
USUAL_STEPS = 6


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


def expected_bits(prepared: Prepared) -> Callable[[float], float]:
    """About how many bits the matrices take, by the price: those of Gaussian rows, at no cost.

    It bends where the file's size bends, which is what a search has to know beforehand.
    """
    matrices = [x for x in prepared.values() if isinstance(x, PreparedMatrix)]
    spread = torch.cat([x.weight.square().mean(dim=1).sqrt() for x in matrices])
    unit, finest = (torch.cat([getattr(x, name) for x in matrices]) for name in ("unit_step", "finest"))
    values = torch.cat([torch.full_like(x.unit_step, x.weight.size(1)) for x in matrices])

    def bits(price: float) -> float:
        step = (math.sqrt(price) * unit).clamp(finest, ALL_ZERO * finest)
        # log2(spread / step) + log2(2 pi e) / 2 for small steps, and none for large ones.
        each = torch.log2(1 + 2 * math.pi * math.e * (spread / step).square()) / 2
        return float((values * each).nansum(dtype=torch.float64))  # a row of zeros has no steps

    return bits


def fit_bytes(
    size: Callable[[float], int],
    limit: int,
    expected: Callable[[float], float] = lambda price: -math.log(price),
    progress: OnProgress = unseen,
) -> float:
    """The lowest price, nearly, at which `size` (at a price) is at most `limit` bytes.

    `expected` falls with the price, and the size about as it does. The file fills the limit except for
    CLOSE_SIZE of it, or is the finest there is. If even the coarsest, of zeros, is larger, this is the
    highest price.
    """

    def of_log(of: Callable[[float], float]) -> Callable[[float], float]:
        return lambda log_price: of(math.exp(log_price))

    log_price = _least(of_log(size), limit, LOWEST, HIGHEST, CLOSE_SIZE, of_log(expected), progress)
    return math.exp(HIGHEST if log_price is None else log_price)


def fit_loss(loss: Callable[[float], float], most: float, progress: OnProgress = unseen) -> float:
    """The highest price, nearly, at which `loss` (at a price) is at most `most`; if none, the lowest."""
    fineness = _least(
        lambda x: loss(math.exp(-x)), most, -HIGHEST, -LOWEST, CLOSE_LOSS, lambda x: -x, progress
    )
    return math.exp(LOWEST if fineness is None else -fineness)


def _least(
    measure: Callable[[float], float],
    limit: float,
    low: float,
    high: float,
    close: float,
    expected: Callable[[float], float],
    progress: OnProgress,
) -> float | None:
    """The least x from low to high, nearly, where a falling `measure` is at most `limit`; None if nowhere.

    Ends where it is less than `close`, a share, below the limit, or where `expected` says that it is. Between
    two points `measure` is taken to go as `expected` does.
    """
    found, steps = high, 0

    @cache
    def excess(at: float) -> float:
        """What `measure` has too much where `expected` is `at`; 0 where it is near enough."""
        nonlocal found, steps
        x = float(optimize.brentq(lambda x: expected(x) - at, low, high))
        value = measure(x)
        if value <= limit:
            found = min(found, x)
        steps += 1
        progress(steps, max(steps + 1, USUAL_STEPS))
        return 0.0 if (1 - close) * limit <= value <= limit else value - (1 - close / 2) * limit

    if excess(expected(high)) > 0:
        return None
    if excess(expected(low)) > 0:
        optimize.toms748(excess, expected(high), expected(low), rtol=NARROW)
    return found
