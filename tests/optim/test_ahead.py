"""EMA-Nesterov against its rules, in float64."""

import pytest
import torch
from torch import nn

from pargolf.config.schema import OptimConfig
from pargolf.optim.ahead import Ahead

STRENGTHS = [0.0, 0.6, 0.6, 0.3, 0.0, 0.0]


def test_the_gradient_is_taken_ahead_and_the_step_goes_on_from_there() -> None:
    torch.manual_seed(0)
    model, curvature = nn.Linear(5, 4, bias=False), torch.rand(4, 5)
    theta = model.weight.detach().double()
    drift, previous = torch.zeros_like(theta), theta.clone()
    ahead = Ahead(model, OptimConfig(ema_nesterov=0.6, ema_nesterov_decay=0.8))
    for strength in STRENGTHS:
        with ahead.shifted(strength):
            (curvature * model.weight.square()).sum().backward()
            assert model.weight.grad is not None
            with torch.no_grad():
                model.weight -= 0.05 * model.weight.grad
            model.weight.grad = None
        theta = theta + strength * drift
        theta = theta - 0.05 * 2 * curvature.double() * theta
        drift = 0.8 * drift + 0.2 * (theta - previous)
        previous = theta
        torch.testing.assert_close(model.weight.detach().double(), theta, rtol=0, atol=1e-6)
        (kept,) = ahead.state().values()
        torch.testing.assert_close(kept.double(), drift, rtol=0, atol=1e-6)


def test_a_step_that_fails_leaves_no_trace_in_the_mean() -> None:
    model = nn.Linear(2, 2)
    ahead = Ahead(model, OptimConfig(ema_nesterov=0.6))
    with pytest.raises(KeyboardInterrupt), ahead.shifted(0.6):
        raise KeyboardInterrupt
    assert not any(drift.any() for drift in ahead.state().values())
