"""The initial weights, all in one function, and how to take over those of another run."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pargolf.config.schema import ModelConfig
from pargolf.model.layers import Linear, LowRank
from pargolf.model.residual import legendre
from pargolf.system.errors import UserError

if TYPE_CHECKING:
    from pargolf.model.gpt import GPT


@torch.no_grad()
def init_weights(model: "GPT", seed: int) -> None:
    """Fill the model's weights from `seed`, on the CPU, so that every device starts the same.

    - embedding: normal, standard deviation `embed_std`, or `spectral_embedding` of that;
    - matrices: uniform in +-1/sqrt(n_in), standard deviation 1/sqrt(3 n_in), PyTorch's default;
    - output projections of attention and MLP (the `up` factor of low-rank ones) and the angles
      of a content rotation: zero;
    - mixes: `mix_profile`;
    - scales, gains, skip weights and depth attention keep the constants they are built with.
    """
    c: ModelConfig = model.config
    generator = torch.Generator().manual_seed(seed)
    model.embed.weight.normal_(0.0, c.embed_std, generator=generator)
    if c.embed_init == "spectral":
        model.embed.weight.copy_(spectral_embedding(model.embed.weight))
    for module in model.modules():
        if isinstance(module, Linear):
            bound = 1 / math.sqrt(module.in_features)
            module.weight.uniform_(-bound, bound, generator=generator)
    profile = mix_profile(c)
    for layer, block in enumerate(model.blocks):
        for last in (block.attn.out, block.mlp.proj, block.rotation):
            if last is not None:
                (last if isinstance(last, Linear) else last.up).weight.zero_()
        if block.resid_mix is not None:
            block.resid_mix.copy_(profile[layer, :, None].expand(2, c.d_model))


def spectral_embedding(weight: Tensor) -> Tensor:
    """`weight` with its k-th largest singular value replaced by one proportional to k^-0.5.

    Singular vectors and Frobenius norm stay, so that only the spectrum differs from the normal
    init: a few directions start strong, as in trained embeddings. Source: the "overtone" init of
    challenge records.
    """
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    shaped = torch.arange(1, len(s) + 1, dtype=torch.float64) ** -0.5
    return ((u * (shaped * s.norm() / shaped.norm())) @ vt).to(weight.dtype)


def mix_profile(c: ModelConfig) -> Tensor:
    """Initial weights of residual stream and embedding by layer, float32 (n_layers, 2).

    With depth t = l / (n_layers - 1) of layer l:
    - identity: 1, 0: the embedding takes no part;
    - legendre: 1, P_n(2 t - 1) / 2 with n = mix_order; degree 2 is negative in the middle layers,
      as the trained mixes of the seed system are (challenge pull request #215);
    - sigmoid: s, 1 - s with s = sigmoid(3 (t - 0.5)): from the embedding to the stream.
    """
    depth = torch.linspace(0, 1, c.n_layers)
    if c.mix_init == "sigmoid":
        stream = torch.sigmoid(3 * (depth - 0.5))
        return torch.stack((stream, 1 - stream), dim=1)
    embedding = torch.zeros_like(depth)
    if c.mix_init == "legendre":
        embedding = legendre(c.n_layers, c.mix_order)[:, c.mix_order] / 2
    return torch.stack((torch.ones_like(depth), embedding), dim=1)


@torch.no_grad()
def take_weights(model: "GPT", source: Mapping[str, Tensor]) -> None:
    """Fill the model from the weights of one that may be full-rank where this is low-rank, or vice versa.

    A matrix (n_out, n_in) of another rank here becomes up = U sqrt(S), down = sqrt(S) V^T of its
    truncated SVD, the closest matrix of that rank (Eckart and Young 1936). Raises UserError,
    naming the tensor, if the models differ in anything else.
    """
    state = dict(source)
    mine = {name: p.shape for name, p in model.named_parameters()}
    for name, module in model.named_modules():
        whole, up, down = (f"{name}{part}.weight" for part in ("", ".up", ".down"))
        if isinstance(module, LowRank | Linear) and up in source and source[up].shape != mine.get(up):
            state[whole] = state.pop(up) @ state.pop(down)
        if isinstance(module, LowRank) and whole in state:
            rank = module.down.out_features
            u, s, vt = torch.linalg.svd(state.pop(whole).double(), full_matrices=False)
            root = s[:rank].sqrt()
            state[up], state[down] = (u[:, :rank] * root).float(), (root[:, None] * vt[:rank]).float()
    for name in sorted(mine.keys() | state.keys()):
        theirs = state[name].shape if name in state else None
        if theirs != mine.get(name):
            raise UserError(
                f"cannot start from that run: {name} is {_size(theirs)} there,"
                f" {_size(mine.get(name))} here; only ranks may differ"
            )
    model.load_state_dict(state)


def _size(shape: torch.Size | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))
