"""The whole model, in reading order.

What is notable about it:
- the first half of the layers encodes, the second half decodes: a decoder layer first adds,
  scaled per channel, the output of the encoder layer that mirrors it;
- every layer first mixes the residual stream with the normalized embedding (`resid_mix`);
- queries (and any other matrix) may be low-rank; keys and values are shared between heads;
  queries and keys are normalized;
- the MLP squares its ReLU; norms have no weights; there are no biases;
- the embedding is tied to the head, whose logits are softly capped;
- output projections start at zero, so that every layer starts as the identity.

Explorations, off by default and then absent: a content-dependent rotation of attention's input,
and attention over depth in the place of mixes and skips (`explorations.py`).

Source: the challenge's baseline and its pull request #215.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pargolf.config.kinds import TENSOR_KINDS, Slot
from pargolf.config.schema import ModelConfig
from pargolf.model.attention import Attention, KVCache
from pargolf.model.explorations import ContentRotation, DepthAttention
from pargolf.model.init import init_weights, kind_of, vector
from pargolf.model.inputs import Embedding
from pargolf.model.layers import norm, rope_tables
from pargolf.model.mlp import MLP
from pargolf.model.residual import mix, mix_weights, skip_weights


class Block(nn.Module):
    """One layer: mix with the embedding, add attention, add the MLP."""

    def __init__(self, c: ModelConfig, layer: int):
        super().__init__()
        self.attn = Attention(c)
        self.mlp = MLP(c)
        self.attn_scale = vector(c.d_model, 1.0)
        self.mlp_scale = vector(c.d_model, 1.0)
        self.rotation = ContentRotation(c) if c.rotation_rank else None
        # Depth attention has mixed the layer's input already.
        self.resid_mix = mix_weights(c, layer) if c.depth_attention == "off" else None

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None = None,
        layer: int = 0,
        first: int = 0,
        skip: Tensor | None = None,
        skip_weight: Tensor | None = None,
    ) -> Tensor:
        """x, x0 (B, T, d_model): residual stream and normalized embedding -> new residual stream.

        `skip`, the output of the layer that this one mirrors, is added to x first, each channel times
        its `skip_weight`. The result is (B, T - first, d_model): positions from `first` on, which
        see all before them.
        """
        if skip is not None and skip_weight is not None:
            x = x + skip_weight.to(x.dtype) * skip
        if self.resid_mix is not None:
            x = mix(self.resid_mix, x, x0)
        normed = norm(x)
        if self.rotation is not None:
            normed = self.rotation(normed)
        attended = self.attn(normed, cos, sin, cache, layer, first)
        x = x[:, first:] + self.attn_scale.to(x.dtype) * attended
        return x + self.mlp_scale.to(x.dtype) * self.mlp(norm(x))


class GPT(nn.Module):
    """The language model. Parameters are float32; activations have `dtype`.

    `seed` fixes the initial weights (see `init_weights`); None leaves them unset, for a model
    whose weights are loaded next.
    """

    blocks: Sequence[Block]
    cos: Tensor
    sin: Tensor

    def __init__(self, c: ModelConfig, dtype: torch.dtype = torch.float32, seed: int | None = None):
        super().__init__()
        self.config = c
        self.dtype = dtype
        self.n_encoder = c.n_layers // 2
        self.embed = Embedding(c)
        self.blocks = nn.ModuleList(Block(c, layer) for layer in range(c.n_layers))  # type: ignore[assignment]
        self.skip_weights = self.depth = None
        if c.depth_attention == "off":
            self.skip_weights = skip_weights(c)
        else:
            self.depth = DepthAttention(c)
        cos, sin = rope_tables(c.seq_len, c.d_head, c.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        if seed is not None:
            init_weights(self, seed)

    def trunk(self, tokens: Tensor, cache: KVCache | None = None, first: int = 0) -> Tensor:
        """tokens (B, T) int64 -> final states (B, T - first, d_model) from position `first` on.

        With a cache, the tokens continue those already in it; together they must fit seq_len. Only
        keys and values of the last layer need the positions before `first`, so that is all it
        computes there.
        """
        start = cache.length if cache is not None else 0
        end = start + tokens.size(1)
        cos, sin = self.cos[start:end], self.sin[start:end]
        x = x0 = self.enter(self.embed(tokens))
        skips: list[Tensor] = []
        deltas: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            decoder_layer = layer - self.n_encoder
            skip = skip_weight = None
            if self.skip_weights is not None and 0 <= decoder_layer < self.n_encoder:
                skip, skip_weight = skips.pop(), self.skip_weights[decoder_layer]
            cut = first if layer == len(self.blocks) - 1 else 0
            before, x = x, block(x, x0, cos, sin, cache, layer, cut, skip, skip_weight)
            if self.depth is not None:
                deltas = [*(delta[:, cut:] for delta in deltas), x - before[:, cut:]]
                x = self.depth(x0[:, cut:], deltas)
            elif layer < self.n_encoder:
                skips.append(x)
        if cache is not None:
            cache.length = end
        return x

    def enter(self, embedded: Tensor) -> Tensor:
        """The residual stream's start: the embedding, normalized, in the dtype of activations."""
        return norm(embedded.to(self.dtype))

    def head(self, states: Tensor) -> Tensor:
        """states (..., d_model) -> softly capped logits (..., vocab_size), float32."""
        logits = F.linear(norm(states), self.embed.weight.to(states.dtype)).float()
        return self.config.softcap * torch.tanh(logits / self.config.softcap)

    def loss(self, states: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats, float32, of targets (B, T) given states (B, T, d_model).

        A scalar mean, or (B, T) values with reduction "none".
        """
        logits = self.head(states)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)
        return loss if reduction == "mean" else loss.view(targets.shape)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of targets (B, T) after tokens (B, T): the training loss."""
        return self.loss(self.trunk(tokens), targets)

    def compile_regions(self) -> None:
        """Compile what training runs, in place: on a GPU the whole, on a CPU a layer and what is around them.

        All layers share the code of one, so this starts several times faster than a compiled whole,
        for nearly the same step time.
        """
        if self.embed.weight.is_cuda:
            self.compile(dynamic=False)
            return
        # Each layer sees another number of earlier ones, and Dynamo by default stops at 8 variants.
        torch._dynamo.config.recompile_limit = 8 * self.config.n_layers
        for block in self.blocks:
            block.compile(dynamic=False)
        if self.depth is not None:
            self.depth.compile(dynamic=False)
        self.enter = torch.compile(self.enter, dynamic=False)  # type: ignore[method-assign]
        self.loss = torch.compile(self.loss, dynamic=False)  # type: ignore[method-assign]


def tensor_kinds(model: GPT) -> dict[str, Slot]:
    """Name of every parameter -> its kind, as its module gave it, and its layer.

    Raises ValueError if a parameter has no kind, so that none is left untrained or unpacked.
    """
    layers = {id(p): layer for layer, block in enumerate(model.blocks) for p in block.parameters()}
    slots = {}
    for name, parameter in model.named_parameters():
        kind = kind_of(parameter)
        if kind not in TENSOR_KINDS:
            raise ValueError(f"{name} has no kind; create it by `matrix` or `vector` of model.init")
        slots[name] = Slot(kind, layers.get(id(parameter)))
    return slots
