"""The residual stream: how each layer mixes it with the embedding, and the skips from encoder to decoder."""

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
    """Weights (n_layers / 2, d_model) of what each decoder layer takes from the encoder layer it mirrors."""
    return vector((c.n_layers // 2, c.d_model), 1.0)
