"""Muon's options against loops over single matrices in float64, written after their formulas."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pargolf.config.schema import OptimConfig
from pargolf.optim.muon import Muon, newton_schulz
from pargolf.optim.norms import braked, floored, length, neuron_normed, pinned, shrinking
from pargolf.optim.soap import soap_shapes, take_in, whitened
from pargolf.system import distributed

SHAPES = [(16, 16), (24, 8), (8, 24), (16, 16), (24, 8), (16, 16)]
# The first gradients of others have directions without any, where eigenvectors are whatever rounding says.
SQUARE = [index for index, (rows, cols) in enumerate(SHAPES) if rows == cols]
PLAIN: dict[str, Any] = {"muon_lr": 0.02, "muon_momentum": 0.9, "muon_weight_decay": 0.0}


def gradients(steps: int) -> Iterator[list[Tensor]]:
    """Of each of the matrices, for so many steps: some directions are always steeper, others change."""
    random = torch.Generator().manual_seed(1)
    steep = [torch.randn(shape, generator=random) for shape in SHAPES]
    for _ in range(steps):
        yield [s + torch.randn(s.shape, generator=random) for s in steep]


def start() -> list[Tensor]:
    """The weights before the first step; one of the matrices is zero, as some of a model's are."""
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random) * (index != 3) for index, shape in enumerate(SHAPES)]


def trained(o: OptimConfig, steps: int) -> Muon:
    """Ours after so many steps."""
    weights = [torch.nn.Parameter(weight) for weight in start()]
    muon = Muon(weights, o, torch.float32, weights if o.soap == "all" else [])
    for step in gradients(steps):
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient
        muon.step()
    return muon


def alone(o: OptimConfig, w: Tensor, steps: list[Tensor]) -> Tensor:
    """A matrix after these gradients."""
    m, n = w.shape
    momentum = torch.zeros_like(w)
    squares = torch.zeros(m if m >= n else n).double()
    soap = Soap(m, n)
    for number, g in enumerate(steps):
        momentum = o.muon_momentum * momentum + g
        u = g + o.muon_momentum * momentum
        if o.soap == "all" and number:
            u = soap.whiten(u)
        u = newton_schulz(u, o.ns_steps, torch.float64) * max(1, m / n) ** 0.5
        if o.muon_neuron_norm:
            squares = 0.95 * squares + 0.05 * u.square().mean(1 if m >= n else 0)
            scaled = u / (squares.sqrt()[:, None] if m >= n else squares.sqrt()[None, :])
            u = scaled * u.norm() / scaled.norm()
        w = stepped(o, w, u)
        if o.soap == "all":
            soap.learn(g, number, o.soap_every)
    return w


def stepped(o: OptimConfig, w: Tensor, u: Tensor) -> Tensor:
    """The matrix after brake, floor, step, radius and decay."""
    lr, decay = o.muon_lr, o.muon_lr * o.muon_weight_decay
    zero = not w.any()
    if o.outward_brake and not zero:
        c = (u * w).sum() / w.square().sum()
        if c < 0:
            u = u - o.outward_brake * c * w
    if o.update_floor and o.update_floor_rows:
        u = torch.stack(
            [max(1.0, o.update_floor * float(v.norm() / r.norm())) * r for r, v in zip(u, w, strict=True)]
        )
    elif o.update_floor and u.norm() / w.norm() < o.update_floor:
        u = u * o.update_floor * w.norm() / u.norm()
    moved = (1 if o.muon_cautious_decay else 1 - decay) * w - lr * u
    if o.radius_pin and not zero:
        moved = moved * (w.norm() - lr * (u * w).sum() / w.norm()) / moved.norm()
    if o.muon_cautious_decay:
        moved = moved * torch.where(u * w > 0, 1 - decay, 1.0)
    return moved


class Soap:
    """Of one matrix."""

    def __init__(self, m: int, n: int) -> None:
        self.left, self.right, self.v = (torch.zeros(shape).double() for shape in ((m, m), (n, n), (m, n)))
        self.q_left, self.q_right = torch.eye(m).double(), torch.eye(n).double()

    def whiten(self, u: Tensor) -> Tensor:
        p = self.q_left.T @ u @ self.q_right
        self.v = 0.9 * self.v + 0.1 * p**2
        s = self.q_left @ (p / self.v.sqrt()) @ self.q_right.T
        return s * u.norm() / s.norm()

    def learn(self, g: Tensor, number: int, every: int) -> None:
        self.left, self.right = 0.9 * self.left + 0.1 * g @ g.T, 0.9 * self.right + 0.1 * g.T @ g
        if number == 0:
            self.q_left = torch.linalg.eigh(self.left).eigenvectors.flip(1)
            self.q_right = torch.linalg.eigh(self.right).eigenvectors.flip(1)
        elif number % every == 0:
            order = (self.q_left.T @ self.left @ self.q_left).diag().argsort(descending=True)
            self.q_left, self.v = torch.linalg.qr(self.left @ self.q_left[:, order]).Q, self.v[order]
            order = (self.q_right.T @ self.right @ self.q_right).diag().argsort(descending=True)
            self.q_right, self.v = torch.linalg.qr(self.right @ self.q_right[:, order]).Q, self.v[:, order]


CAUTIOUS = {"muon_cautious_decay": True, "muon_weight_decay": 2.0}
EVERYTHING: dict[str, Any] = CAUTIOUS | {
    "muon_neuron_norm": True, "soap": "all", "soap_every": 2, "update_floor": 0.5, "outward_brake": 0.5,
    "radius_pin": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"muon_weight_decay": 2.0},
        {"muon_neuron_norm": True},
        {"soap": "all", "soap_every": 1},
        {"soap": "all", "soap_every": 3},
        {"update_floor": 0.5},
        {"update_floor": 0.5, "update_floor_rows": True},
        {"outward_brake": 0.5},
        {"radius_pin": True},
        CAUTIOUS,
        EVERYTHING,
    ],
    ids=str,
)
def test_an_option_is_its_formula(options: dict[str, Any]) -> None:
    o = OptimConfig(**(PLAIN | options))
    ours, steps = trained(o, 7).param_groups[0]["params"], list(gradients(7))
    for index in SQUARE if o.soap == "all" else range(len(SHAPES)):
        expected = alone(o, start()[index].double(), [step[index].double() for step in steps])
        torch.testing.assert_close(ours[index].double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_matrices_that_are_not_square_are_whitened_by_the_formula(shape: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    batch = [Soap(*shape) for _ in range(3)]
    state = {name: torch.zeros(3, *sides) for name, sides in soap_shapes(*shape).items()}
    for index, soap in enumerate(batch):
        soap.q_left, soap.q_right = (
            torch.linalg.qr(torch.randn(side, side, generator=random)).Q.double() for side in shape
        )
        state["soap_left_basis"][index] = soap.q_left
        state["soap_right_basis"][index] = soap.q_right
    for number in range(1, 60):  # so many that there are gradients in all directions
        g, u = torch.randn(2, 3, *shape, generator=random)
        white = whitened(u, state, 0.9)
        take_in(g, state, 0.9, number, 30)
        for index, soap in enumerate(batch):
            expected = soap.whiten(u[index].double())
            soap.learn(g[index].double(), number, 30)
            ours = white[index].double() * expected.norm() / white[index].norm()
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)


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


def test_the_brake_is_for_what_makes_a_matrix_longer() -> None:
    weights = torch.tensor([[[2.0, 0.0]]])
    outward, inward = torch.tensor([[[-1.0, 3.0]]]), torch.tensor([[[1.0, 3.0]]])
    assert braked(outward, weights, 0.5).flatten().tolist() == [-0.5, 3.0]
    assert braked(inward, weights, 0.5).flatten().tolist() == [1.0, 3.0]


def test_a_floor_lengthens_what_is_shorter() -> None:
    update, weights = torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]), torch.tensor([[[6.0, 8.0], [0.0, 8.0]]])
    rows = floored(update, weights, 0.25, by_rows=True)
    torch.testing.assert_close(rows, torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]))
    assert torch.equal(floored(update, weights, 0.25, by_rows=False), update)
    torch.testing.assert_close(length(floored(update, weights, 0.5, by_rows=False)), length(weights) / 2)
    assert torch.equal(floored(update, torch.zeros_like(weights), 0.5, by_rows=True), update)


def test_a_pinned_matrix_turns_without_growing() -> None:
    weights, across = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, -3.0]]])
    torch.testing.assert_close(length(pinned(weights - across, weights, across)), length(weights))
    outward = -0.1 * weights
    torch.testing.assert_close(pinned(weights - outward, weights, outward), 1.1 * weights)
    nothing = torch.zeros_like(weights)
    assert torch.equal(pinned(-across, nothing, across), -across)  # a matrix at zero may begin


def test_cautious_decay_of_a_tiny_matrix() -> None:
    """Values 2 and -2 of four are pulled to zero by their steps, and decay by 1 - 0.1 * 0.5 beside."""
    assert shrinking(torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([2.0, 2.0, -2.0, -2.0])).tolist() == [
        True, False, False, True,
    ]  # fmt: skip
    o = OptimConfig(muon_lr=0.1, muon_momentum=0.0, muon_weight_decay=0.5, muon_cautious_decay=True)
    weight = torch.nn.Parameter(torch.tensor([[2.0, 2.0], [-2.0, 2.0]]))
    weight.grad = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    Muon([weight], o, torch.float32).step()
    u = newton_schulz(weight.grad, 5, torch.float32)[0, 0].item()
    expected = torch.tensor([[(2 - 0.1 * u) * 0.95, 2.0], [-2.0, 2 + 0.1 * u]])
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"soap": "mlp"}], ids=str)
def test_off_an_option_keeps_nothing(options: dict[str, Any]) -> None:
    muon = trained(OptimConfig(**options), 1)  # the tests' matrices are not of an MLP
    assert all(state.keys() == {"momentum_buffer"} for state in muon.state.values())


def test_no_option_waits_for_the_device() -> None:
    """On a device without data, all that reads a value on the host fails."""
    weights = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]
    muon = Muon(weights, OptimConfig(**EVERYTHING), torch.bfloat16, weights)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        muon.step()


def test_two_ranks_end_as_one(tmp_path: Path) -> None:
    """Of three, two and one matrices of a shape the second rank has one, one and none; then both know all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(tmp_path)], env={**os.environ, **world, "RANK": rank})
        for rank in "01"
    ]
    one_rank = trained(OptimConfig(**(PLAIN | EVERYTHING)), 5)
    assert [process.wait() for process in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / rank, weights_only=True) for rank in "01")
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    for index in SQUARE:
        torch.testing.assert_close(first[index], results(one_rank)[index].detach(), rtol=0, atol=1e-4)


def results(muon: Muon) -> list[Tensor]:
    """Weights and state."""
    weights = muon.param_groups[0]["params"]
    return [*weights, *(stack for weight in weights for stack in muon.state[weight].values())]


if __name__ == "__main__":  # a rank of that test
    with distributed.world("cpu"):
        shared = trained(OptimConfig(**(PLAIN | EVERYTHING)), 5)
        shared.share_state()
        torch.save([x.detach().clone() for x in results(shared)], Path(sys.argv[1], os.environ["RANK"]))
