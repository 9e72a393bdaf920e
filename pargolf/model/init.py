"""The initial weights, all in one function."""

import math
from typing import TYPE_CHECKING

import torch

from pargolf.model.layers import Linear

if TYPE_CHECKING:
    from pargolf.model.gpt import GPT


@torch.no_grad()
def init_weights(model: "GPT", seed: int) -> None:
    """Fill the model's weights from `seed`, on the CPU, so that every device starts the same.

    - embedding: normal, standard deviation `embed_std`;
    - matrices: uniform in +-1/sqrt(n_in), standard deviation 1/sqrt(3 n_in), PyTorch's default;
    - output projections of attention and MLP: zero;
    - scales, gains, mixes and skip weights keep the constants they are built with.
    """
    generator = torch.Generator().manual_seed(seed)
    model.embed.weight.normal_(0.0, model.config.embed_std, generator=generator)
    for module in model.modules():
        if isinstance(module, Linear):
            bound = 1 / math.sqrt(module.in_features)
            module.weight.uniform_(-bound, bound, generator=generator)
    for block in model.blocks:
        block.attn.out.weight.zero_()
        block.mlp.proj.weight.zero_()
