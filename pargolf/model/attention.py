"""Causal self-attention: low-rank queries, grouped key/value heads, RoPE, a key-value cache."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from pargolf.config.schema import ModelConfig
from pargolf.model.init import matrix, normal, vector, zero
from pargolf.model.inputs import GATE_CHANNELS
from pargolf.model.layers import norm, projection, rotate

# What a cache keeps of the last token, beside keys and values: itself, what it is as a vector, where its
# document starts; or, by its number, a visit's key of the token's own.
Named = Literal["token", "embedding", "start"]
Kept = Named | int


class KVCache:
    """Keys and values of the tokens seen so far, one pair of tensors a visit of a layer.

    Each tensor is (batch, kv_heads, seq_len, d_head); the first `length` positions are filled.
    """

    text: Tensor | None = None
    """(batch, positions) bool, with those that are about to come: text, or padding that no text sees.
    None: all is text."""

    def __init__(self, c: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device | str = "cpu"):
        shape = (len(c.visits), 2, batch, c.kv_heads, c.seq_len, c.d_head)
        self.store = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0
        self.kept: dict[Kept, Tensor] = {}

    def last(self, what: Kept) -> Tensor | None:
        """What was kept (batch, 1, n) of the last token; None before the first."""
        return self.kept[what] if self.length else None

    def keep(self, what: Kept, x: Tensor) -> None:
        """Keep the last of x (batch, T, n)."""
        self.kept[what] = x[:, -1:]

    def extend(self, visit: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v (batch, kv_heads, T, d_head) of one visit; return all keys and values so far.

        `length` is advanced by the model once all visits have appended.
        """
        end = self.length + k.size(2)
        keys, values = self.store[visit]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]


def before(what: Kept, x: Tensor, cache: KVCache | None) -> Tensor:
    """For each of x (batch, T, n) the one before it; the first of a row has itself."""
    last = cache.last(what) if cache is not None else None
    if cache is not None:
        cache.keep(what, x)
    return torch.cat((x[:, :1] if last is None else last, x[:, :-1]), dim=1)


class Attention(nn.Module):
    """out(softmax(q k^T / sqrt(d_head)) v), causal, with q and k normalized per head.

    q is multiplied by a learned gain per head (`q_gain`), since normalized queries could not
    sharpen the softmax otherwise. k and v have `kv_heads` heads, each shared by
    n_heads / kv_heads query heads (GQA, arXiv 2305.13245).

    Options: keys that tell the token before as well (`key_offset`); values with an embedding of the token
    (`value_embed_layers`) or with those of the first layer (`value_residual`, ResFormer, arXiv 2410.17897);
    XSA (`xsa_layers`); a gate (`head_gate`).
    """

    is_late: Tensor

    def __init__(self, c: ModelConfig, layer: int = 0):
        super().__init__()
        self.c = c
        self.n_heads, self.kv_heads, self.d_head = c.n_heads, c.kv_heads, c.d_head
        self.q = projection(c.d_model, c.d_model, c.q_rank, "attn", c.weight_init)
        self.k = projection(c.d_model, c.d_kv, c.k_rank, "attn", c.weight_init)
        self.v = projection(c.d_model, c.d_kv, c.v_rank, "attn", c.weight_init)
        self.out = projection(c.d_model, c.d_model, c.out_rank, kind="attn", init="zero")
        self.q_gain = vector(c.n_heads, c.q_gain)
        self.takes_embedding = layer >= c.n_layers - c.value_embed_layers
        if c.key_offset:
            is_late = torch.arange(c.d_kv) < round(c.key_offset * c.kv_heads) * c.d_head
            self.register_buffer("is_late", is_late, persistent=False)
        self.value_share = vector(1, 1.0) if c.value_embed_layers and self.takes_embedding else None
        self.value_mix = vector(2, 0.5) if c.value_residual and layer else None
        self.is_exclusive = layer >= c.n_layers - c.xsa_layers
        self.gate = HeadGate(c) if c.head_gate != "off" else None

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None = None,
        visit: int = 0,
        first: int = 0,
        embedded: Tensor | None = None,
        first_values: Tensor | None = None,
        starts: Tensor | BlockMask | None = None,
        follows: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, d_model) -> (B, T - first, d_model), of the positions from `first` on.

        cos, sin (T, r / 2) are those of the positions of x; `embedded` and `first_values` (B, T, d_kv) the
        tokens' embeddings for values, and the first layer's values, where the options ask for them. `starts`
        (B, T) int32: the first key that a query may see, where documents are kept apart; in compiled
        training on a GPU the `document_blocks` of them. `follows` (B, T) bool: there is a token before in the
        document, which `key_offset` asks for.
        """
        q = self._heads(self.q(x[:, first:]), self.n_heads)
        k = self.k(x)
        if self.c.key_offset and follows is not None:
            k = torch.where(follows[..., None] & self.is_late, before(visit, k, cache), k)
        k = self._heads(k, self.kv_heads)
        v = self.values(x, embedded)
        if self.value_mix is not None and first_values is not None:
            shares = self.value_mix.to(v.dtype)
            v = shares[0] * first_values + shares[1] * v
        own = v = self._heads(v, self.kv_heads)
        q = self._placed(norm(q), cos[first:], sin[first:]) * self.q_gain.to(x.dtype)[:, None, None]
        k = self._placed(norm(k), cos, sin)
        if cache is not None:
            k, v = cache.extend(visit, k, v)
        # The queries belong to the last of the keys; `past` keys come before them.
        past = k.size(2) - q.size(2)
        text = cache.text if cache is not None else None
        if past or text is not None:
            y = self._attend_after(q, k, v, past, starts, text)
        else:
            y = self.attend(q, k, v, starts)
        if self.c.xsa_layers and self.is_exclusive:
            y = exclude(y, own[:, :, first:])
        y = y.transpose(1, 2)
        if self.gate is not None:
            y = self.gate(x[:, first:])[..., None] * y
        y = y.flatten(2)
        return self.out(norm(y) if self.c.inner_norm else y)

    def values(self, x: Tensor, embedded: Tensor | None) -> Tensor:
        """x (B, T, d_model) -> its values (B, T, d_kv), with the tokens' `embedded` where they belong in."""
        v = self.v(x)
        if self.value_share is not None and embedded is not None:
            v = v + self.value_share.to(v.dtype) * embedded
        return v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | BlockMask | None = None) -> Tensor:
        """Causal attention of q (B, n_heads, T, d_head) to k and v (B, kv_heads, T, d_head): shape of q.

        With `starts` (B, T) a query sees no key before its start.
        """
        if self.c.documents == "apart":
            return self._attend_apart(q, k, v, starts)
        return F.scaled_dot_product_attention(
            q, k, v, None, is_causal=True, enable_gqa=self.kv_heads != self.n_heads
        )

    def _attend_apart(self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | BlockMask | None) -> Tensor:
        if isinstance(starts, BlockMask):
            y = flex_attention(q, k, v, block_mask=starts, enable_gqa=self.kv_heads != self.n_heads)
            assert isinstance(y, Tensor)
            return y
        return self._attend_after(q, k, v, 0, starts)

    def _attend_after(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past: int,
        starts: Tensor | BlockMask | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """The same where `past` keys and values come before those of the first; `text` as in a cache."""
        length, mask = q.size(2), None
        if length > 1 or text is not None:
            mask = torch.ones(length, k.size(2), dtype=torch.bool, device=q.device).tril(past)
        if isinstance(starts, Tensor):
            keys = torch.arange(k.size(2), device=q.device)
            apart = (keys >= starts[:, -length:, None])[:, None]  # (B, 1, T, keys)
            mask = apart if mask is None else apart & mask
        if text is not None and mask is not None:
            # Padding sees padding: a query that saw nothing would be no number.
            mask = mask & (text[:, None, None, :] | ~text[:, None, past:, None])
        if mask is not None and q.is_cuda and self.kv_heads != self.n_heads:
            # Of kernels that take a mask, those that share keys themselves may be none but the plainest,
            # which keeps every weight of every query.
            k, v = (x.repeat_interleave(self.n_heads // self.kv_heads, dim=1) for x in (k, v))
            return F.scaled_dot_product_attention(q, k, v, mask)
        return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=self.kv_heads != self.n_heads)

    def _placed(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Heads (B, heads, T, d_head), turned by their positions."""
        if not self.c.rope_dims:
            return rotate(x, cos, sin)
        turned, rest = x.split((self.c.rope_dims, self.d_head - self.c.rope_dims), dim=-1)
        return torch.cat((rotate(turned, cos, sin), rest), dim=-1)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        """(B, T, heads * d_head) -> (B, heads, T, d_head)"""
        return x.unflatten(-1, (heads, self.d_head)).transpose(1, 2)


def document_blocks(starts: Tensor) -> BlockMask:
    """Which blocks of keys the queries see, given the first key (B, T) that each may see.

    Blocks that nobody sees are not computed (FlexAttention, arXiv 2412.05496).
    """

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= starts[row, query])

    rows, length = starts.shape
    return create_block_mask(sees, rows, None, length, length, device=starts.device)


def exclude(y: Tensor, v: Tensor) -> Tensor:
    """y (B, n_heads, T, d_head) without what points along the token's own value v (B, kv_heads, T, d_head).

    A token then writes only what it read from others (exclusive self attention, challenge thread 478).
    """
    own = F.normalize(v, dim=-1, eps=1e-12)[:, :, None]
    heads = y.unflatten(1, (v.size(1), -1))  # (B, kv_heads, group, T, d_head)
    return (heads - (heads * own).sum(-1, keepdim=True) * own).flatten(1, 2)


class HeadGate(nn.Module):
    """A factor for each head's output, computed from what the layer reads.

    - "out": 2 s(w . x[:12]), w starts at 0, as 1 (challenge thread 1667)
    - "dense": s(w . x), w starts as normal values of deviation 0.005, as about 1/2 (April 19 2026)
    - "sparse": s(scale w . x[:12]), w starts at 0, as 1/2 (April 23 2026; scale 0.5 in thread 1855)
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.c = c
        if c.head_gate == "dense":
            self.weight = matrix(c.n_heads, c.d_model, "gate", normal(0.005))
        else:
            self.weight = matrix(c.n_heads, min(GATE_CHANNELS, c.d_model), "gate", zero)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, d_model) -> (B, T, n_heads)."""
        logits = F.linear(x[..., : self.weight.size(1)], self.weight.to(x.dtype))
        if self.c.head_gate == "out":
            return 2 * torch.sigmoid(logits)
        return torch.sigmoid(self.c.head_gate_scale * logits)
