"""Attention against its formula written out, and the key-value cache against the whole sequence."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pargolf.config.schema import ModelConfig
from pargolf.model.attention import Attention, KVCache
from pargolf.model.layers import rope_tables, rotate
from support import matrix, shaken

TINY = ModelConfig(vocab_size=64, seq_len=16, n_layers=5, d_model=24, n_heads=4, kv_heads=2, q_rank=5)


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()


def explicit_attention(attention: Attention, x: Tensor, base: float) -> Tensor:
    """The same function, one head and one query position at a time, with nothing shared."""
    length = x.size(1)
    heads, d = attention.n_heads, attention.d_head
    w_q, w_k, w_v, w_out = (matrix(part) for part in (attention.q, attention.k, attention.v, attention.out))
    out = torch.zeros_like(x)

    def turned(vector: Tensor, position: int) -> Tensor:
        result = torch.empty_like(vector)
        for i in range(d // 2):
            angle = position / base ** (2 * i / d)
            a, b = vector[..., i], vector[..., i + d // 2]
            result[..., i] = a * math.cos(angle) + b * math.sin(angle)
            result[..., i + d // 2] = -a * math.sin(angle) + b * math.cos(angle)
        return result

    for head in range(heads):
        kv = head // (heads // attention.kv_heads)
        q = rms(x @ w_q[head * d : (head + 1) * d].T)
        k = rms(x @ w_k[kv * d : (kv + 1) * d].T)
        v = x @ w_v[kv * d : (kv + 1) * d].T
        for t in range(length):
            query = turned(q[:, t], t) * attention.q_gain[head]
            scores = torch.stack([(query * turned(k[:, s], s)).sum(-1) for s in range(t + 1)], dim=-1)
            weights = torch.exp(scores / math.sqrt(d))
            weights = weights / weights.sum(-1, keepdim=True)
            out[:, t, head * d : (head + 1) * d] = sum(weights[:, s, None] * v[:, s] for s in range(t + 1))
    return out @ w_out.T


@pytest.mark.parametrize("ranks", [{"q_rank": 0}, {"q_rank": 5}, {"k_rank": 2, "v_rank": 3, "out_rank": 4}])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_the_formula(ranks: dict[str, Any], kv_heads: int) -> None:
    torch.manual_seed(0)
    c = dataclasses.replace(TINY, seq_len=9, kv_heads=kv_heads, **ranks)
    attention = Attention(c)
    with torch.no_grad():
        for p in attention.parameters():
            p.uniform_(-0.3, 0.3)
        attention.q_gain.uniform_(0.5, 3.0)
    x = torch.randn(2, 9, 24)
    cos, sin = rope_tables(9, 6, c.rope_base)
    expected = explicit_attention(attention, x, c.rope_base)
    torch.testing.assert_close(attention(x, cos, sin), expected, rtol=1e-4, atol=1e-5)


def test_rope_keeps_norms_and_depends_on_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(8), torch.randn(8)
    cos, sin = rope_tables(50, 8, 10000.0)
    turned_q = rotate(q.expand(50, 8), cos, sin)
    turned_k = rotate(k.expand(50, 8), cos, sin)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(50))
    scores = turned_q @ turned_k.T
    torch.testing.assert_close(scores[10, 3], scores[47, 40], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cuts", [[16], [1] * 16, [5, 1, 1, 6, 3], [15, 1]])
def test_cached_pieces_equal_the_whole_sequence(cuts: list[int]) -> None:
    model = shaken(TINY)
    with torch.no_grad():
        tokens = torch.randint(64, (2, 16))
        whole = model.head(model.trunk(tokens))
        cache = KVCache(TINY, 2, torch.float32)
        pieces = [model.head(model.trunk(piece, cache)) for piece in tokens.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert cache.length == 16
