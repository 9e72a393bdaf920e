"""Parameters that carry their kind and their start: what each is, and which values it begins with.

A module creates its parameters by `matrix` and `vector`; `init_weights` then fills those that start
at random. Each draws from a generator of its own, made of the seed and the parameter's name, so that
an option that adds or removes parameters leaves the start of all others as it was.
"""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

# Fills a parameter with its first values, in place, from a generator.
Start = Callable[[Tensor, torch.Generator], None]


def matrix(rows: int, cols: int, kind: str, start: Start) -> nn.Parameter:
    """A parameter (rows, cols) of `kind` (see `config.kinds`), unset until `init_weights`."""
    return _carrying(nn.Parameter(torch.empty(rows, cols)), kind, start)


def vector(size: int | tuple[int, ...], value: float | Tensor) -> nn.Parameter:
    """A parameter of kind "vector" that starts at `value`, broadcast to `size`."""
    values = torch.empty(size).copy_(torch.as_tensor(value))
    return _carrying(nn.Parameter(values), "vector", keep)


def _carrying(parameter: nn.Parameter, kind: str, start: Start) -> nn.Parameter:
    parameter.kind, parameter.start = kind, start  # type: ignore[attr-defined]
    return parameter


def kind_of(parameter: Tensor) -> str | None:
    """The kind that a module gave a parameter; None if it gave none."""
    return getattr(parameter, "kind", None)


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Fill every parameter with its start, on the CPU, so that every device begins the same."""
    for name, parameter in model.named_parameters():
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4]))  # PyTorch's takes 32 bits
        start: Start = parameter.start  # type: ignore[attr-defined]
        start(parameter, generator)


def keep(weight: Tensor, generator: torch.Generator) -> None:
    """The values it was created with."""


def zero(weight: Tensor, generator: torch.Generator) -> None:
    """Zeros: what a projection adds to the residual stream begins at nothing."""
    weight.zero_()


def uniform(weight: Tensor, generator: torch.Generator) -> None:
    """+-1/sqrt(n_in) for a weight (n_out, n_in), standard deviation 1/sqrt(3 n_in): PyTorch's default."""
    bound = 1 / math.sqrt(weight.size(1))
    weight.uniform_(-bound, bound, generator=generator)


def orthogonal(weight: Tensor, generator: torch.Generator) -> None:
    """Orthonormal rows or columns, whichever are fewer, where both sides are at least 64; else `uniform`.

    Source: challenge records from March 19 2026 on.
    """
    if min(weight.shape) < 64:
        uniform(weight, generator)
    else:
        nn.init.orthogonal_(weight, generator=generator)


def normal(std: float) -> Start:
    """Normal values of this standard deviation."""

    def start(weight: Tensor, generator: torch.Generator) -> None:
        weight.normal_(0.0, std, generator=generator)

    return start


# How a `Linear` may start, by name.
STARTS = {"uniform": uniform, "orthogonal": orthogonal, "zero": zero}
