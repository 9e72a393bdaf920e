"""The search for a price: lands close below its limit, whatever the sizes do in between."""

import math
from collections.abc import Callable

import pytest
import torch

from pargolf.config.kinds import Slot
from pargolf.export.entropy import encode_matrix
from pargolf.export.quantize import Quantized
from pargolf.fit.gptq import Moments
from pargolf.fit.price import Stored, expected_bits, fit_bytes, fit_loss, prepare_state, state_at

Curve = Callable[[float], float]
# Bytes by the logarithm of the price: flat at both ends as real ones, with a knee, with a cliff.
CURVES: dict[str, Curve] = {
    "slope": lambda x: 60_000 - 1000 * x,
    "sigmoid": lambda x: 20_000 + 1_000_000 / (1 + math.exp(x + 15)),
    "knee": lambda x: 100_000 - (50 * x if x < -10 else 5000 * (x + 10) - 500),
    "bumpy": lambda x: 60_000 - 1000 * x + 5 * math.sin(1000 * x),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.7, 0.98])
def test_a_limit_is_filled_and_never_passed(name: str, share: float) -> None:
    calls = []

    def size(price: float) -> int:
        calls.append(price)
        return round(CURVES[name](math.log(price)))

    least, most = (CURVES[name](x) for x in (5.0, -40.0))
    limit = round(least + share * (most - least))
    assert 0.9995 * limit - 1 <= size(fit_bytes(size, limit)) <= limit
    assert len(calls) < 25


def test_with_a_cliff_the_file_is_the_one_below_it() -> None:
    def size(price: float) -> int:
        return 9000 if math.log(price) < -12.3 else 5000

    assert size(fit_bytes(size, 7000)) == 5000


def test_the_finest_is_enough_and_the_coarsest_too_large() -> None:
    def size(price: float) -> int:
        return round(1000 - 10 * math.log(price))

    assert size(fit_bytes(size, 5000)) == 1400
    assert fit_bytes(size, 900) == pytest.approx(math.exp(5))


def test_a_loss_is_spent_and_never_passed() -> None:
    assert 0.0019 < (price := fit_loss(lambda price: 1000 * price - 0.0001, 0.002)) * 1000 - 0.0001 <= 0.002
    assert price < 0.0000021
    assert fit_loss(lambda price: 0.0021, 0.002) == pytest.approx(math.exp(-40))


def test_what_gaussian_rows_would_take_shortens_the_search() -> None:
    generator = torch.Generator().manual_seed(0)
    state, slots, moments = {}, {}, {}
    for layer, (rows, cols) in enumerate([(256, 64), (64, 256)]):
        name = f"blocks.{layer}.mlp.fc.weight"
        state[name] = torch.randn(rows, cols, generator=generator) * 2.0 ** (-4 * layer)
        slots[name] = Slot("mlp", layer)
        x = torch.randn(512, cols, generator=generator)
        moments[name] = Moments(x.T @ x / 512, torch.rand(rows, generator=generator))
    state["blocks.0.mlp.fc.weight"][7] = 0.0  # a row that has no steps
    prepared = prepare_state(state, slots, moments)
    bits, calls = expected_bits(prepared), []

    def size(price: float) -> int:
        calls.append(price)
        return coded(state_at(prepared, price))

    def coded(stored: Stored) -> int:
        forms = [x for x in stored.values() if isinstance(x, Quantized)]
        return sum(len(encode_matrix(x.values.numpy(), x.bits)[0]) for x in forms)

    assert bits(1e-9) > bits(1e-5) > bits(1e-3) > 0
    for limit in (4_000, 12_000):
        calls.clear()
        price = fit_bytes(size, limit, bits)
        assert 0.9995 * limit - 4 <= size(price) <= limit  # a code is a whole number of words
        assert len(calls) <= 10
        assert 0.7 < bits(price) / (8 * limit) < 1.3
