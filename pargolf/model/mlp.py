"""The MLP of a layer."""

import torch.nn.functional as F
from torch import Tensor, nn

from pargolf.config.schema import ModelConfig
from pargolf.model.layers import norm, projection


class MLP(nn.Module):
    """proj(relu(fc(x))^2), hidden width d_mlp (squared ReLU: arXiv 2109.08668).

    With `relu_slope` the square of LeakyReLU: z^2 for z > 0, (slope z)^2 below (challenge records). With
    `inner_norm` proj reads the normalized hidden values (challenge's ternary record, March 24 2026).
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.c = c
        self.fc = projection(c.d_model, c.d_mlp, c.fc_rank, "mlp", c.weight_init)
        self.proj = projection(c.d_mlp, c.d_model, c.proj_rank, kind="mlp", init="zero")

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, d_model) -> the same shape."""
        hidden = self.fc(x)
        hidden = F.leaky_relu(hidden, self.c.relu_slope) if self.c.relu_slope else F.relu(hidden)
        hidden = hidden.square()
        return self.proj(norm(hidden) if self.c.inner_norm else hidden)
