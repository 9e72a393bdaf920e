"""What the parts of the model share: a matrix, whole or of low rank, a norm without weights, RoPE."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pargolf.config.schema import ModelConfig
from pargolf.model.init import STARTS, matrix

Init = Literal["uniform", "orthogonal", "zero"]


class Linear(nn.Module):
    """x @ W^T without bias; W (n_out, n_in) is kept in float32 and cast to x's dtype at the multiply.

    Casting the master weight, instead of autocast, leaves the optimizer in full precision
    and every other dtype in the model as written.
    """

    def __init__(self, n_in: int, n_out: int, kind: str, init: Init = "uniform"):
        super().__init__()
        self.weight = matrix(n_out, n_in, kind, STARTS[init])

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class LowRank(nn.Module):
    """x @ (up down)^T: a (n_out, n_in) matrix of at most `rank`, stored as its two factors.

    Source: challenge pull request #215, where trained query matrices were found to use
    about 100 of their 512 dimensions.
    """

    def __init__(self, n_in: int, n_out: int, rank: int, kind: str, init: Init = "uniform"):
        super().__init__()
        self.down = Linear(n_in, rank, kind, "uniform" if init == "zero" else init)
        self.up = Linear(rank, n_out, kind, init)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


def projection(n_in: int, n_out: int, rank: int, kind: str, init: Init = "uniform") -> Linear | LowRank:
    """A full matrix, or its low-rank form where `rank` is above 0."""
    return LowRank(n_in, n_out, rank, kind, init) if rank else Linear(n_in, n_out, kind, init)


def norm(x: Tensor) -> Tensor:
    """RMSNorm over the last dimension without weight, with the epsilon of x's dtype."""
    return F.rms_norm(x, (x.size(-1),))


def rope_tables(seq_len: int, turned: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (seq_len, turned / 2), float32: position t turns pair i by t / base^(2i / turned).

    Source: RoFormer, arXiv 2104.09864.
    """
    frequencies = base ** (-torch.arange(0, turned, 2, dtype=torch.float32) / turned)
    angles = torch.outer(torch.arange(seq_len, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rope_base(c: ModelConfig) -> float:
    """`rope_base`, or base (T / T0)^(r / (r - 2)) where rows of T tokens are longer than `ntk_length` T0.

    r dimensions of a head are turned. Source: the NTK rule of challenge records from March 20 2026 on.
    """
    turned = c.rope_dims or c.d_head
    if c.ntk_length and c.seq_len > c.ntk_length and turned > 2:
        return c.rope_base * (c.seq_len / c.ntk_length) ** (turned / (turned - 2))
    return c.rope_base


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + d/2]) of x (..., T, d) by the angles of cos, sin (T, d / 2)."""
    x1, x2 = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)
