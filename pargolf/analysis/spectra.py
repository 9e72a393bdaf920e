"""Singular values of a model's matrices, and how many dimensions they really use."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.model.inputs import Embedding
from pargolf.model.layers import Linear, LowRank

Source = Literal["checkpoint", "artifact"]
Part = Literal["full", "product", "down", "up"]


@dataclass(frozen=True)
class MatrixSpectrum:
    """One weight matrix W (rows, cols) = (n_out, n_in; the embedding: vocabulary, d_model).

    Every figure weighs all input directions alike; which of them the data use is not looked at.
    """

    name: str
    """Path of its module in the model: "blocks.0.attn.q"."""
    role: str
    """Attribute that holds the projection: "q", "k", "v", "out", "fc", "proj", "embed"."""
    part: Part
    """A whole matrix ("full"), or a low-rank one: up @ down ("product") or one of its factors."""
    layer: int | None
    """None outside the layers."""
    source: Source
    """Trained weights, or what the artifact's integers and scales stand for."""
    rows: int
    cols: int
    singular_values: tuple[float, ...]
    """Descending; min(rows, cols) of them, of a product at most its rank: the others are zero."""
    condition: float | None
    """Largest over smallest of `singular_values`; None if the matrix is singular, to float64's precision."""
    entropy_rank: float
    """See `entropy_rank`."""
    needed_rank: int
    """Fewest singular values that leave out at most the `energy_loss` asked for; see `rank_for_loss`."""

    @property
    def label(self) -> str:
        """Role, with the factor if it is one: "q", "q.down"."""
        return f"{self.role}.{self.part}" if self.part in ("down", "up") else self.role


def model_spectra(model: GPT, source: Source, energy_loss: float) -> Iterator[MatrixSpectrum]:
    """Every matrix of the model in its order; a low-rank one as product, down and up."""
    layers = {name.removesuffix(".weight"): slot.layer for name, slot in tensor_kinds(model).items()}
    for name, module in model.named_modules():
        parent, _, role = name.rpartition(".")
        part: Part = "full"
        if isinstance(module, LowRank):
            up, down = module.up.weight.detach(), module.down.weight.detach()
            part, shape, layer = "product", (up.size(0), down.size(1)), layers[f"{name}.up"]
            values = product_singular_values(up, down)
        elif isinstance(module, Linear | Embedding):
            weight = module.weight.detach()
            holder = model.get_submodule(parent)
            if isinstance(holder, LowRank):
                part = "up" if module is holder.up else "down"
                role = parent.rpartition(".")[2]
            shape, layer = (weight.size(0), weight.size(1)), layers[name]
            values = torch.linalg.svdvals(weight.double())
        else:
            continue
        yield MatrixSpectrum(
            name, role, part, layer, source, *shape,
            tuple(values.tolist()),
            condition(values),
            entropy_rank(values),
            rank_for_loss(values, energy_loss),
        )  # fmt: skip


def product_singular_values(up: Tensor, down: Tensor) -> Tensor:
    """up (rows, rank), down (rank, cols) -> the min(rows, rank, cols) singular values of up @ down that
    may differ from zero, float64, descending.

    By the triangular factors of up and down^T. Those of the multiplied (rows, cols) matrix would
    end in rounding errors, and its condition number would be theirs.
    """
    left, right = (torch.linalg.qr(x.double(), mode="r").R for x in (up, down.T))
    return torch.linalg.svdvals(left @ right.T)


def condition(values: Tensor) -> float | None:
    """Largest over smallest of descending singular values (n,); None where the smallest is zero.

    Zero is what float64 cannot tell from it: n * eps times the largest.
    """
    largest, smallest = values[0].item(), values[-1].item()
    if smallest <= largest * len(values) * torch.finfo(values.dtype).eps:
        return None
    return largest / smallest


def entropy_rank(values: Tensor) -> float:
    """exp(-sum p log p) with p = values / sum(values): n for n equal singular values, 1 for a single one.

    Values (n,) of at least 0; 0 for a matrix of zeros. Source: Roy and Vetterli, "The effective
    rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    total = values.sum()
    return torch.special.entr(values / total).sum().exp().item() if total > 0 else 0.0


def rank_for_loss(values: Tensor, loss: float) -> int:
    """Smallest rank at which a matrix of these descending singular values (n,) can be kept with at
    most the share `loss` of its energy (squared Frobenius norm) left out.

    The best matrix of rank r leaves out the energy of the values after the first r
    (Eckart and Young, 1936).
    """
    energy = values.square()
    left_out = energy.flip(0).cumsum(0).flip(0)  # at index r: what rank r leaves out
    return int((left_out > loss * energy.sum()).sum())
