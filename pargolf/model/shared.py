"""Matrices that layers have in common: polynomials of depth, with a few matrices as coefficients.

Source: the challenge's non-record of March 31 2026.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from pargolf.config.schema import ModelConfig
from pargolf.model.explorations import legendre
from pargolf.model.init import matrix, normal, vector, zero
from pargolf.model.layers import Linear

ATTENTION, MLP = ("attn.q", "attn.k", "attn.v", "attn.out"), ("mlp.fc", "mlp.proj")


class Polynomial(nn.Module):
    """Matrices C_0 .. C_n (n_out, n_in), of which W = sum_k C_k P_k(depth) is made for a layer.

    C_k starts as normal values of deviation 0.5^k / sqrt(n_out), or at zero where what it replaces does.
    """

    def __init__(self, like: Linear, kind: str, degree: int, is_zero: bool):
        super().__init__()
        rows, cols = like.weight.shape
        for k in range(degree + 1):
            start = zero if is_zero else normal(0.5**k / math.sqrt(rows))
            self.register_parameter(f"c{k}", matrix(rows, cols, kind, start))

    def forward(self, x: Tensor, depth: Tensor) -> Tensor:
        """x (..., n_in) and the values P_0 .. P_n of a layer's depth -> (..., n_out)."""
        weight = sum(depth[k] * c for k, c in enumerate(self.parameters()))
        assert isinstance(weight, Tensor)
        return F.linear(x, weight.to(x.dtype))


class AtDepth(nn.Module):
    """The matrix of one layer, times a learned scale."""

    depth: Tensor

    def __init__(self, polynomial: Polynomial, depth: Tensor):
        super().__init__()
        self._shared = (polynomial,)  # hidden from PyTorch: they belong to the model, not to a layer
        self.scale = vector(1, 1.0)
        self.register_buffer("depth", depth, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.to(x.dtype) * self._shared[0](x, self.depth)


def share(c: ModelConfig, blocks: nn.ModuleList) -> nn.ModuleDict:
    """Replace matrices of all layers but the first and the last by those of their depth; returns what they
    are made of, by role."""
    depths = {degree: legendre(c.n_layers, degree) for degree in (c.legendre_attn, c.legendre_mlp)}
    shared = nn.ModuleDict()
    for roles, kind, degree in ((ATTENTION, "attn", c.legendre_attn), (MLP, "mlp", c.legendre_mlp)):
        for role in roles if degree else ():
            holder, name = role.split(".")
            like = getattr(blocks[0].get_submodule(holder), name)
            shared[name] = made = Polynomial(like, kind, degree, is_zero=name in ("out", "proj"))
            for layer in range(1, c.n_layers - 1):
                at_depth = AtDepth(made, depths[degree][layer])
                setattr(blocks[layer].get_submodule(holder), name, at_depth)
    return shared
