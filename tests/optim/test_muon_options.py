"""Muon's options against loops over single matrices in float64, written after their formulas."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pargolf.config.schema import OptimConfig
from pargolf.optim.muon import Muon, newton_schulz
from pargolf.optim.norms import neuron_normed

SHAPES = [(16, 16), (24, 8), (8, 24), (16, 16), (24, 8)]
PLAIN: dict[str, Any] = {"muon_lr": 0.02, "muon_momentum": 0.9, "muon_weight_decay": 0.0}


def gradients(steps: int) -> Iterator[list[Tensor]]:
    """Of each of the matrices, for so many steps: some directions are always steeper, others change."""
    random = torch.Generator().manual_seed(1)
    steep = [torch.randn(shape, generator=random) for shape in SHAPES]
    for _ in range(steps):
        yield [s + torch.randn(s.shape, generator=random) for s in steep]


def trained(o: OptimConfig, steps: int) -> list[Tensor]:
    """The weights after so many steps of ours; one of the matrices starts at zero, as models have them."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape) * (index != 3)) for index, shape in enumerate(SHAPES)]
    muon = Muon(weights, o, torch.float32)
    for step in gradients(steps):
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient
        muon.step()
    return [weight.detach() for weight in weights]


def by_hand(o: OptimConfig, steps: int) -> list[Tensor]:
    """The same one matrix after the other, in float64."""
    torch.manual_seed(0)
    weights = [torch.randn(shape).double() * (index != 3) for index, shape in enumerate(SHAPES)]
    return [
        alone(o, weight, [step[index].double() for step in gradients(steps)])
        for index, weight in enumerate(weights)
    ]


def alone(o: OptimConfig, w: Tensor, steps: list[Tensor]) -> Tensor:
    m, n = w.shape
    momentum = torch.zeros_like(w)
    squares = torch.zeros(m if m >= n else n).double()
    for g in steps:
        momentum = o.muon_momentum * momentum + g
        u = g + o.muon_momentum * momentum
        u = newton_schulz(u, o.ns_steps, torch.float64) * max(1, m / n) ** 0.5
        if o.muon_neuron_norm:
            squares = 0.95 * squares + 0.05 * u.square().mean(1 if m >= n else 0)
            scaled = u / (squares.sqrt()[:, None] if m >= n else squares.sqrt()[None, :])
            u = scaled * u.norm() / scaled.norm()
        w = (1 - o.muon_lr * o.muon_weight_decay) * w - o.muon_lr * u
    return w


@pytest.mark.parametrize("options", [{}, {"muon_neuron_norm": True}], ids=str)
def test_an_option_is_its_formula(options: dict[str, Any]) -> None:
    o = OptimConfig(**(PLAIN | options))
    for ours, expected in zip(trained(o, 7), by_hand(o, 7), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=2e-5)


def test_neurons_of_a_tiny_update() -> None:
    """Rows of lengths 5 and 1 have mean squares 12.5 and 0.5; both become sqrt(13) long, and |u| stays."""
    update, squares = torch.tensor([[[3.0, 4.0], [0.6, 0.8]]]), torch.zeros(1, 2, 1)
    normed = neuron_normed(update, squares, 0.95)
    torch.testing.assert_close(squares.flatten(), torch.tensor([0.05 * 12.5, 0.05 * 0.5]))
    torch.testing.assert_close(normed, 13**0.5 * torch.tensor([[[0.6, 0.8], [0.6, 0.8]]]))
    # A wide one by its columns, and a second step with what is left of the first.
    wide, squares = torch.tensor([[[2.0, 1.0, 0.0]]]), torch.tensor([[[4.0, 1.0, 1.0]]])
    normed = neuron_normed(wide, squares, 0.75)
    torch.testing.assert_close(squares.flatten(), torch.tensor([4.0, 1.0, 0.75]))
    torch.testing.assert_close(normed, (5 / 2) ** 0.5 * torch.tensor([[[1.0, 1.0, 0.0]]]))
