"""What a layer reads: explorations of the published system's author beside the plain residual stream.

Source: challenge pull request #215, where all of them were tried and left out of the final system.
"""

import numpy as np
import torch
from torch import Tensor, nn

from pargolf.config.schema import ModelConfig
from pargolf.model.init import vector
from pargolf.model.layers import Linear, norm, rotate


def legendre(n_layers: int, order: int) -> Tensor:
    """P_0 .. P_order at depths -1 .. 1 of the layers: float32 (n_layers, order + 1)."""
    depth = np.linspace(-1, 1, n_layers)
    return torch.from_numpy(np.polynomial.legendre.legvander(depth, order)).float()


def mix_profile(c: ModelConfig) -> Tensor:
    """Initial weights of residual stream and embedding by layer, float32 (n_layers, 2).

    With depth t = l / (n_layers - 1) of layer l:
    - identity: 1, 0: the embedding takes no part;
    - legendre: 1, P_n(2 t - 1) / 2 with n = mix_order; degree 2 is negative in the middle layers,
      as the trained mixes of the published system are;
    - sigmoid: s, 1 - s with s = sigmoid(3 (t - 0.5)): from the embedding to the stream.
    """
    profile = np.stack((np.ones(c.n_layers), np.zeros(c.n_layers)), axis=1)
    if c.mix_init == "sigmoid":
        profile[:, 0] = 1 / (1 + np.exp(-3 * (np.linspace(0, 1, c.n_layers) - 0.5)))
        profile[:, 1] = 1 - profile[:, 0]
    if c.mix_init == "legendre":
        profile[:, 1] = legendre(c.n_layers, c.mix_order)[:, c.mix_order] / 2
    return torch.from_numpy(profile).float()


class ContentRotation(nn.Module):
    """Turn the feature pairs (x[i], x[i + d/2]) by angles that are computed from x itself.

    angles = up(down(x)), d_model -> rank -> d_model / 2, in float32. For a given content that is
    a rotation: it keeps the norm, its determinant is 1, and with `up` at zero, as it starts, it
    is the identity. Real arithmetic on halves, so that torch.compile fuses all of it.
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.down = Linear(c.d_model, c.rotation_rank, kind="attn")
        self.up = Linear(c.rotation_rank, c.d_model // 2, kind="attn", init="zero")

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, d_model) -> the same shape, turned."""
        angles = self.up(self.down(x)).float()
        return rotate(x, angles.cos(), angles.sin())


class DepthAttention(nn.Module):
    """The input of a layer as embedding + attention over what the earlier layers have added.

    input_l = x0 + sum_j weight_lj * delta_j over the layers j < l, where delta_j is what layer j
    added to its own input, and per token
    score_lj = sum_k bias_lk P_k(depth_j) + mean(routing_l * rmsnorm(delta_j)).

    "softmax": weight = softmax of the scores over j, as in Attention Residuals (arXiv 2603.15031).
    "signed": weight = 1 + score, which may be negative and starts as the plain residual stream:
    the trained mixes of the published system are negative in its middle layers, where no softmax can
    follow. Scores start at zero.
    """

    depths: Tensor

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.signed = c.depth_attention == "signed"
        # Row l - 1 is for the input of layer l; the last row is for the head's.
        self.bias = vector((c.n_layers, c.depth_order + 1), 0.0)
        self.routing = vector((c.n_layers, c.d_model), 0.0)
        self.register_buffer("depths", legendre(c.n_layers, c.depth_order), persistent=False)

    def forward(self, x0: Tensor, deltas: list[Tensor]) -> Tensor:
        """x0 and `deltas`, of the l >= 1 layers so far, all (B, T, d_model) -> input of layer l."""
        row = len(deltas) - 1
        outputs = torch.stack(deltas)  # (l, B, T, d_model)
        content = (norm(outputs) * self.routing[row].to(x0.dtype)).mean(-1, dtype=torch.float32)
        scores = content + (self.depths[: row + 1] @ self.bias[row])[:, None, None]
        weights = 1 + scores if self.signed else scores.softmax(dim=0)
        return x0 + (weights[..., None].to(x0.dtype) * outputs).sum(dim=0)
