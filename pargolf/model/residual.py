"""The residual stream: its mix with the embedding, skips from encoder to decoder, and two lanes."""

import torch
from torch import Tensor, nn

from pargolf.config.schema import ModelConfig
from pargolf.model.explorations import mix_profile
from pargolf.model.init import vector


def mix_weights(c: ModelConfig, layer: int) -> nn.Parameter:
    """Weights (2, d_model) of a layer: row 0 of the residual stream, row 1 of the embedding."""
    return vector((2, c.d_model), mix_profile(c)[layer, :, None])


def mix(weights: Tensor, x: Tensor, x0: Tensor) -> Tensor:
    """A layer's input, of residual stream x and normalized embedding x0, both (B, T, d_model)."""
    weights = weights.to(x.dtype)
    return weights[0] * x + weights[1] * x0


def skip_weights(c: ModelConfig) -> nn.Parameter:
    """Weights (n_skips, d_model) of what each decoder layer takes from the encoder layer it mirrors."""
    return vector((c.n_skips, c.d_model), 1.0)


def skip_gates(c: ModelConfig) -> nn.Parameter:
    """Gates (n_skips, d_model) between stream and skip."""
    return vector((c.n_skips, c.d_model), 0.0)


def add_skip(x: Tensor, skip: Tensor, weight: Tensor, gate: Tensor | None) -> Tensor:
    """x and the output `skip` of the layer that this one mirrors, (B, T, d_model), joined channel by channel.

    x + weight skip, or with a gate s(gate) x + (1 - s(gate)) weight skip (challenge thread 1089).
    """
    skip = weight.to(x.dtype) * skip
    return x + skip if gate is None else torch.lerp(skip, x, torch.sigmoid(gate).to(x.dtype))


class Routes(nn.Module):
    """How much of each lane, of attention and of the MLP goes on in each of two lanes ("routed").

    a <- ra a + pa_a attended + pm_a fed, m <- rm m + pa_m attended + pm_m fed: all p start at 1, r at 1.1.
    Source: challenge thread 1530.
    """

    def __init__(self) -> None:
        super().__init__()
        self.keep = vector(2, 1.1)
        self.add = vector((2, 2), 1.0)

    def forward(self, lanes: Tensor, attended: Tensor, fed: Tensor) -> Tensor:
        """lanes (2, B, T, d_model), what attention and MLP add (B, T, d_model) -> the lanes after them."""
        keep, add = (w.to(lanes.dtype)[..., None, None, None] for w in (self.keep, self.add))
        return keep * lanes + add[:, 0] * attended + add[:, 1] * fed
