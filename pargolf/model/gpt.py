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

With `loop_times` some layers are passed through several times, with the same weights (depth recurrence,
challenge threads 1204 and 1394): encoder, decoder and skips then go by visits.

Explorations, off by default and then absent: a content-dependent rotation of attention's input,
and attention over depth in the place of mixes and skips (`explorations.py`).

Source: the challenge's baseline and its pull request #215.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from pargolf.config.kinds import TENSOR_KINDS, Slot
from pargolf.config.schema import ModelConfig
from pargolf.model.attention import Attention, KVCache, before, document_blocks
from pargolf.model.explorations import ContentRotation, DepthAttention
from pargolf.model.init import init_weights, kind_of, vector
from pargolf.model.inputs import BigramHash, Embedding, SmearGate, ValueEmbedding
from pargolf.model.layers import norm, rope_base, rope_tables
from pargolf.model.mlp import MLP
from pargolf.model.residual import Routes, add_skip, mix, mix_weights, skip_gates, skip_weights
from pargolf.model.shared import share


class Block(nn.Module):
    """One layer: mix with the embedding, add attention, add the MLP.

    From `parallel_from` on, `parallel` layers read both from one input, x = u + attention(u) + mlp(u)
    ("joint", as GPT-J), or keep two lanes: attention reads the first, mixed with the embedding, and the
    MLP the second. Each writes into its own ("lanes", challenge record of April 4 2026) or into both
    ("routed", see `Routes`).
    """

    ln_scale: Tensor

    def __init__(self, c: ModelConfig, layer: int):
        super().__init__()
        self.c = c
        self.attn = Attention(c, layer)
        self.mlp = MLP(c)
        self.attn_scale = vector(c.d_model, 1.0)
        self.mlp_scale = vector(c.d_model, 1.0)
        self.rotation = ContentRotation(c) if c.rotation_rank else None
        # Depth attention has mixed the layer's input already.
        self.resid_mix = mix_weights(c, layer) if c.depth_attention == "off" else None
        self.is_parallel = layer >= c.parallel_from
        self.routes = Routes() if c.parallel == "routed" and self.is_parallel else None
        if c.ln_scale:  # a tensor, so that all layers share their compiled code
            self.register_buffer("ln_scale", torch.tensor((layer + 1) ** -0.5), persistent=False)

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None = None,
        visit: int = 0,
        first: int = 0,
        skip: Tensor | None = None,
        skip_weight: Tensor | None = None,
        skip_gate: Tensor | None = None,
        embedded: Tensor | None = None,
        first_values: Tensor | None = None,
        starts: Tensor | BlockMask | None = None,
        follows: Tensor | None = None,
    ) -> Tensor:
        """x, x0 (B, T, d_model): residual stream and normalized embedding -> new residual stream.

        `skip`, the output of the layer that this one mirrors, is added to x first (see `add_skip`). The
        result is (B, T - first, d_model): positions from `first` on, which see all before them. Two
        lanes are one tensor (2, B, T, d_model). For the last four see `Attention`.
        """
        lanes = None
        if self.c.parallel in ("lanes", "routed") and self.is_parallel:
            lanes, x = x, x[0]
        if skip is not None and skip_weight is not None:
            x = add_skip(x, skip, skip_weight, skip_gate)
        mixed = self.mixed(x, x0)
        normed = self.attention_input(mixed)
        attended = self.attn(normed, cos, sin, cache, visit, first, embedded, first_values, starts, follows)
        attended = self.attn_scale.to(x.dtype) * attended
        if lanes is not None:
            return self._in_lanes(x[:, first:], lanes[1][:, first:], attended)
        if self.c.parallel == "joint" and self.is_parallel:
            return mixed[:, first:] + attended + self._fed(mixed[:, first:])
        x = mixed[:, first:] + attended
        return x + self._fed(x)

    def mixed(self, x: Tensor, x0: Tensor) -> Tensor:
        """x, mixed with the normalized embedding x0, both (B, T, d_model)."""
        return x if self.resid_mix is None else mix(self.resid_mix, x, x0)

    def attention_input(self, mixed: Tensor) -> Tensor:
        """What attention reads of the mixed stream (B, T, d_model)."""
        normed = self._normed(mixed)
        return normed if self.rotation is None else self.rotation(normed)

    def _normed(self, x: Tensor) -> Tensor:
        return norm(x) * self.ln_scale.to(x.dtype) if self.c.ln_scale else norm(x)

    def _fed(self, x: Tensor) -> Tensor:
        """What the MLP adds to x (B, T, d_model)."""
        return self.mlp_scale.to(x.dtype) * self.mlp(self._normed(x))

    def _in_lanes(self, a: Tensor, m: Tensor, attended: Tensor) -> Tensor:
        """The lanes (2, B, T, d_model) after this layer: a is where it has attended, the MLP reads m."""
        fed = self._fed(m)
        if self.routes is not None:
            return self.routes(torch.stack((a, m)), attended, fed)
        return torch.stack((a + attended, m + fed))


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
        self.looped = True
        """Whether the layers of the loop are passed through again; a training may begin without."""
        self.embed = Embedding(c)
        self.bigram = BigramHash(c) if c.bigram_rows else None
        self.smear = SmearGate(c) if c.smear != "off" else None
        self.value_embed = ValueEmbedding(c) if c.value_embed_layers else None
        self.blocks = nn.ModuleList(Block(c, layer) for layer in range(c.n_layers))  # type: ignore[assignment]
        self.shared = share(c, self.blocks) if c.legendre_attn or c.legendre_mlp else None  # type: ignore[arg-type]
        self.skip_weights = self.skip_gates = self.depth = None
        if c.depth_attention == "off":
            self.skip_weights = skip_weights(c)
        else:
            self.depth = DepthAttention(c)
        if c.skip_gates:
            self.skip_gates = skip_gates(c)
        self.lane_share = vector(1, 0.5) if c.parallel == "lanes" else None
        self.caps = vector(2, c.softcap) if c.softcap_sides else None
        cos, sin = rope_tables(c.seq_len, c.rope_dims or c.d_head, rope_base(c))
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
        c = self.config
        start = cache.length if cache is not None else 0
        end = start + tokens.size(1)
        cos, sin = self.cos[start:end], self.sin[start:end]
        x = x0 = self.enter(self.embed(tokens), tokens, cache)
        embedded = first_values = None
        starts: Tensor | BlockMask | None = None
        if c.documents == "apart":
            starts = self.document_starts(tokens, cache)
            if cache is None and starts.is_cuda and torch.compiler.is_compiling():
                starts = document_blocks(starts)
        follows = self.follows(tokens, cache) if c.key_offset else None
        if self.value_embed is not None:
            embedded = self.value_embed(tokens).to(x.dtype)
        if c.value_residual:
            entry = self.blocks[0]
            first_values = entry.attn.values(entry.attention_input(entry.mixed(x, x0)), embedded)
        visits = c.visits if self.looped else tuple(range(c.n_layers))
        n_encoder = len(visits) // 2
        skips: list[Tensor] = []
        deltas: list[Tensor] = []
        for visit, layer in enumerate(visits):
            block, mirrored = self.blocks[layer], visit - n_encoder
            skip = skip_weight = skip_gate = None
            if self.skip_weights is not None and 0 <= mirrored < n_encoder:
                skip, skip_weight = skips.pop(), self.skip_weights[mirrored]
                if self.skip_gates is not None:
                    skip_gate = self.skip_gates[mirrored]
            if c.parallel in ("lanes", "routed") and layer == c.parallel_from:
                x = torch.stack((x, x))
            cut = first if visit == len(visits) - 1 else 0
            entered, x = x, block(
                x, x0, cos, sin, cache, visit, cut, skip, skip_weight, skip_gate, embedded, first_values,
                starts, follows,
            )  # fmt: skip
            if self.depth is not None:
                deltas = [*(delta[:, cut:] for delta in deltas), x - entered[:, cut:]]
                x = self.depth(x0[:, cut:], deltas)
            elif visit < n_encoder:
                skips.append(x)
        if c.parallel == "routed":
            x = x.mean(0)
        if self.lane_share is not None:
            x = torch.lerp(x[1], x[0], self.lane_share.to(x.dtype))
        if cache is not None:
            cache.length = end
        return x

    def enter(self, embedded: Tensor, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """The residual stream's start: the embedding (B, T, d_model) of tokens (B, T), normalized, in the
        dtype of activations, and with what the options mix into it."""
        if self.bigram is None and self.smear is None:
            return norm(embedded.to(self.dtype))
        mixes = self.follows(tokens, cache)
        if self.bigram is not None:
            embedded = embedded + self.bigram(
                tokens, before("token", tokens[..., None], cache)[..., 0], mixes
            )
        x = embedded.to(self.dtype)
        if self.config.smear == "late" and self.smear is not None:
            x = self.smear(x, before("embedding", x, cache), mixes)
        x = norm(x)
        if self.config.smear == "early" and self.smear is not None:
            x = self.smear(x, before("embedding", x, cache), mixes)
        return x

    def follows(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B, T) -> (B, T) bool: whether a token of the same document comes before each."""
        after = tokens != self.config.bos_id
        if cache is None or not cache.length:  # the first token of a row has none before it
            after = torch.cat((torch.zeros_like(after[:, :1]), after[:, 1:]), dim=1)
        if cache is not None and cache.text is not None:  # nor has that after padding
            places = torch.arange(cache.length - 1, cache.length - 1 + tokens.size(1), device=tokens.device)
            after = after & cache.text[:, places.clamp(min=0)]
        return after

    def document_starts(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B, T) -> (B, T) int32: the place in the row where the document of each token starts."""
        past = cache.length if cache is not None else 0
        places = torch.arange(past, past + tokens.size(1), dtype=torch.int32, device=tokens.device)
        starts = torch.where(tokens == self.config.bos_id, places, 0)
        last = cache.last("start") if cache is not None else None
        if last is not None:  # the document may have begun before these tokens
            starts = torch.maximum(starts, last[..., 0])
        starts = starts.cummax(dim=1).values
        if cache is not None:
            cache.keep("start", starts[..., None])
        return starts

    def head(self, states: Tensor) -> Tensor:
        """states (..., d_model) -> softly capped logits (..., vocab_size), float32."""
        logits = self.unembed(norm(states)).float()
        cap = self.cap(logits)
        return cap * torch.tanh(logits / cap)

    def unembed(self, states: Tensor) -> Tensor:
        """Normalized states (..., d_model) -> logits (..., vocab_size) before they are capped."""
        return F.linear(states, self.embed.weight.to(states.dtype))

    def cap(self, logits: Tensor) -> Tensor | float:
        """What bounds the logits: learned for either side with `softcap_sides` (challenge thread 1923)."""
        if self.caps is None:
            return self.config.softcap
        return torch.where(logits > 0, self.caps[0], self.caps[1])

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
