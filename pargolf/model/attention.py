"""Causal self-attention: low-rank queries, grouped key/value heads, RoPE, a key-value cache."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pargolf.config.schema import ModelConfig
from pargolf.model.init import vector
from pargolf.model.layers import norm, projection, rotate


class KVCache:
    """Keys and values of the tokens seen so far, one pair of tensors a layer.

    Each tensor is (batch, kv_heads, seq_len, d_head); the first `length` positions are filled.
    """

    text: Tensor | None = None
    """(batch, positions) bool, with those that are about to come: text, or padding that no text sees.
    None: all is text."""

    def __init__(self, c: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device | str = "cpu"):
        shape = (c.n_layers, 2, batch, c.kv_heads, c.seq_len, c.d_head)
        self.store = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v (batch, kv_heads, T, d_head) of one layer; return all keys and values so far.

        `length` is advanced by the model once all layers have appended.
        """
        end = self.length + k.size(2)
        keys, values = self.store[layer]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]


class Attention(nn.Module):
    """out(softmax(q k^T / sqrt(d_head)) v), causal, with q and k normalized per head.

    q is multiplied by a learned gain per head (`q_gain`), since normalized queries could not
    sharpen the softmax otherwise. k and v have `kv_heads` heads, each shared by
    n_heads / kv_heads query heads (GQA, arXiv 2305.13245).
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.n_heads, self.kv_heads, self.d_head = c.n_heads, c.kv_heads, c.d_head
        self.q = projection(c.d_model, c.d_model, c.q_rank, kind="attn")
        self.k = projection(c.d_model, c.d_kv, c.k_rank, kind="attn")
        self.v = projection(c.d_model, c.d_kv, c.v_rank, kind="attn")
        self.out = projection(c.d_model, c.d_model, c.out_rank, kind="attn", init="zero")
        self.q_gain = vector(c.n_heads, c.q_gain)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None = None,
        layer: int = 0,
        first: int = 0,
    ) -> Tensor:
        """x (B, T, d_model) -> (B, T - first, d_model), of the positions from `first` on.

        cos, sin (T, d_head / 2) are those of the positions of x.
        """
        q = self._heads(self.q(x[:, first:]), self.n_heads)
        k = self._heads(self.k(x), self.kv_heads)
        v = self._heads(self.v(x), self.kv_heads)
        q = rotate(norm(q), cos[first:], sin[first:]) * self.q_gain.to(x.dtype)[:, None, None]
        k = rotate(norm(k), cos, sin)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        # The queries belong to the last of the keys; `past` keys come before them.
        past = k.size(2) - q.size(2)
        text = cache.text if cache is not None else None
        y = self.attend(q, k, v) if not past and text is None else self._attend_after(q, k, v, past, text)
        return self.out(y.transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of q (B, n_heads, T, d_head) to k and v (B, kv_heads, T, d_head): shape of q."""
        return F.scaled_dot_product_attention(
            q, k, v, None, is_causal=True, enable_gqa=self.kv_heads != self.n_heads
        )

    def _attend_after(self, q: Tensor, k: Tensor, v: Tensor, past: int, text: Tensor | None) -> Tensor:
        """The same where `past` keys and values come before those of the first; `text` as in a cache."""
        length, mask = q.size(2), None
        if length > 1 or text is not None:
            mask = torch.ones(length, k.size(2), dtype=torch.bool, device=q.device).tril(past)
        if text is not None and mask is not None:
            # Padding sees padding: a query that saw nothing would be no number.
            mask = mask & (text[:, None, None, :] | ~text[:, None, past:, None])
        return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=self.kv_heads != self.n_heads)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        """(B, T, heads * d_head) -> (B, heads, T, d_head)"""
        return x.unflatten(-1, (heads, self.d_head)).transpose(1, 2)
