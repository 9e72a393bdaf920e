"""Second-order rounding against textbook loops, exhaustive search and plain rounding."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from pargolf.export.quantize import dequantize, of_digits
from pargolf.fit.gptq import (
    DAMPING,
    SMOOTHING,
    Moments,
    inverse_factor,
    prepare,
    quantize_at,
    round_second_order,
    scale_digits,
)
from pargolf.system.errors import UserError


def random_inputs(seed: int, cols: int, tokens: int = 500) -> Tensor:
    """Second moments of strongly correlated inputs of very different sizes, (cols, cols)."""
    g = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, cols, generator=g) @ torch.randn(cols, cols, generator=g)
    x = (mixed + 3 * torch.randn(tokens, 1, generator=g)) * torch.rand(cols, generator=g)
    return x.T @ x / tokens


def damped(inputs: Tensor) -> Tensor:
    return inputs.double() + DAMPING * inputs.diagonal().double().mean() * torch.eye(len(inputs))


def cost(error: Tensor, hessian: Tensor) -> Tensor:
    """(rows,)"""
    return ((error.double() @ hessian) * error.double()).sum(1)


def optimal_brain_rounding(weight: Tensor, scale: Tensor, hessian: Tensor, top: int) -> Tensor:
    """The textbook, one column at a time: the best change of all later columns, by a fresh inverse."""
    w = weight.double()
    values = torch.empty_like(w)
    for i in range(w.size(1)):
        inverse = torch.linalg.inv(hessian[i:, i:])
        values[:, i] = (w[:, i] / scale).round().clamp(-top, top)
        error = w[:, i] - values[:, i] * scale
        w[:, i:] -= torch.outer(error / inverse[0, 0], inverse[0])
    return values.to(torch.int8)


@pytest.mark.parametrize(("cols", "top"), [(1, 31), (7, 3), (64, 31), (150, 7)])
def test_it_rounds_as_the_textbook_does(cols: int, top: int) -> None:
    inputs = random_inputs(cols, cols)
    weight = torch.randn(5, cols, generator=torch.Generator().manual_seed(1))
    scale = weight.abs().amax(1) / top
    mine = round_second_order(weight, scale, inverse_factor(inputs), top)
    assert torch.equal(mine, optimal_brain_rounding(weight, scale.double(), damped(inputs), top))
    assert cols == 1 or not torch.equal(mine, (weight / scale[:, None]).round().to(torch.int8))


def test_it_lies_between_the_best_of_all_roundings_and_the_nearest() -> None:
    grid = torch.tensor(list(itertools.product((-1, 0, 1, 2), repeat=4)), dtype=torch.float64)
    sums = torch.zeros(3, dtype=torch.float64)
    for seed in range(60):
        hessian = damped(random_inputs(seed, 4, tokens=8))
        weight = torch.rand(1, 4, generator=torch.Generator().manual_seed(seed))
        values = round_second_order(weight, torch.ones(1), inverse_factor(hessian), 2)
        errors = torch.cat((weight - values, weight - weight.round(), weight - grid))
        mine, nearest, *others = cost(errors, damped(hessian)).tolist()
        best = min(others)
        assert best <= mine + 1e-12
        sums += torch.tensor([best, mine, nearest])
    assert sums[1] < 0.75 * sums[2]
    assert sums[1] < 2 * sums[0]


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    weight = torch.randn(6, 100, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().amax(1) / 20  # the largest are clipped
    factor = inverse_factor(torch.diag(torch.rand(100, generator=torch.Generator().manual_seed(1))))
    nearest = (weight / scale[:, None]).round().clamp(-15, 15).to(torch.int8)
    assert torch.equal(round_second_order(weight, scale, factor, 15), nearest)


def test_each_row_costs_the_same_whatever_its_outputs_weigh() -> None:
    """At one price the slopes are equal, and with rows of one length so are the costs."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 400, generator=g)
    moments = Moments(random_inputs(3, 400, tokens=2000), torch.linspace(-2, 2, 8).exp())
    prepared = prepare(weight, moments)
    price = float(0.1 / prepared.unit_step.mean()) ** 2  # steps of about a tenth of the weights
    q = quantize_at(prepared, price)
    weights = moments.outputs + SMOOTHING * moments.outputs.mean()
    costs = weights * cost(dequantize(q) - weight, damped(moments.inputs)) / 2
    assert costs.max() < 1.3 * costs.min()
    # A uniform error within a step: its cost is half of n times price / ln 2.
    assert costs.mean() == pytest.approx(400 * price / (2 * math.log(2)), rel=0.1)


def test_a_lower_price_costs_less_and_the_bits_are_those_needed() -> None:
    weight = torch.randn(8, 30, generator=torch.Generator().manual_seed(0))
    moments = Moments(random_inputs(0, 30), torch.ones(8))
    prepared = prepare(weight, moments)
    states = [quantize_at(prepared, price) for price in (0.0, 1e-4, 1e-2, 1.0, 1e9)]
    costs = [float(cost(dequantize(q) - weight, damped(moments.inputs)).sum()) for q in states]
    assert costs == sorted(costs) and costs[0] < 1e-3 * costs[-1]
    assert states[0].bits == 8 and states[-1].bits == 2 and not states[-1].values.any()
    assert [q.bits for q in states] == sorted((q.bits for q in states), reverse=True)
    for q in states:
        largest = int(q.values.abs().max())
        assert largest <= 2 ** (q.bits - 1) - 1 and (q.bits == 2 or largest > 2 ** (q.bits - 2) - 1)


def test_no_value_is_clipped_by_the_few_digits_of_its_scale() -> None:
    weight = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    prepared = prepare(weight, Moments(torch.eye(30), torch.ones(200)))
    for price in (0.0, 1e-9, 1e-4):
        q = quantize_at(prepared, price)
        assert ((dequantize(q) - weight).abs() <= 0.50001 * q.scale.float()[:, None]).all()


@pytest.mark.parametrize("cols", [8, 40, 192, 512, 1024, 2048])
def test_a_scale_has_the_digits_that_pay(cols: int) -> None:
    """A row's cost is e^2d of cols / (2 ln 2) bits at its price; its values take cols d / ln 2 bits less."""
    best = torch.exp2(torch.rand(10_000, generator=torch.Generator().manual_seed(0)))
    totals = []
    for digits in range(11):
        d = (of_digits(best, digits) / best).log()
        totals.append(digits + cols * float(((2 * d).exp() / 2 - d).mean()) / math.log(2))
    assert scale_digits(cols) == totals.index(min(totals))


def test_what_is_never_used_takes_no_bits_and_does_no_harm() -> None:
    inputs = random_inputs(0, 12)
    inputs[[2, 5]] = 0
    inputs[:, [2, 5]] = 0
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    q = quantize_at(prepare(weight, Moments(inputs, torch.tensor([1.0, 0.0, 1.0, 1.0]))), 1e-6)
    assert not q.values[:, [2, 5]].any() and q.values[:, [0, 1, 3, 4]].any()
    for zeros in (Moments(torch.zeros(12, 12), torch.ones(4)), Moments(inputs, torch.zeros(4))):
        q = quantize_at(prepare(weight, zeros), 1e-6)
        assert q.scale.isfinite().all() and (q.scale > 0).all()


def test_a_row_beyond_float16_is_named() -> None:
    with pytest.raises(UserError, match=r"^blocks\.3\.q has a row too large"):
        quantize_at(prepare(torch.full((2, 3), 1e8), Moments(torch.eye(3), torch.ones(2))), 0.0, "blocks.3.q")
