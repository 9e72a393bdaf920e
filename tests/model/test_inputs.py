"""What is mixed into the embedding: each formula, its start, and that nothing crosses a document's start."""

import dataclasses
from typing import Any

import pytest
import torch

from pargolf.config.schema import ModelConfig
from pargolf.model.attention import KVCache, document_blocks
from pargolf.model.gpt import GPT
from pargolf.model.layers import norm
from support import shaken

TINY = ModelConfig(
    vocab_size=64, seq_len=16, n_layers=3, d_model=24, n_heads=4, kv_heads=2, q_rank=5, bos_id=1
)
MIXING: list[dict[str, Any]] = [{"smear": "late"}, {"smear": "early"}, {"bigram_rows": 31}]


def tiny(**changes: Any) -> ModelConfig:
    return dataclasses.replace(TINY, **changes)


def tokens_of_two_documents() -> torch.Tensor:
    tokens = torch.randint(2, 64, (2, 16))
    tokens[:, 7] = 1
    return tokens


@pytest.mark.parametrize("changes", [*MIXING, {**MIXING[0], **MIXING[2]}], ids=str)
def test_nothing_crosses_the_start_of_a_document_or_a_row(changes: Any) -> None:
    model, tokens = shaken(tiny(**changes)), tokens_of_two_documents()
    plain, entered = norm(model.embed(tokens)), model.enter(model.embed(tokens), tokens)
    other = torch.cat((torch.randint(2, 64, (2, 7)), tokens[:, 7:]), dim=1)
    changed = model.enter(model.embed(other), other)
    assert torch.equal(changed[:, 7:], entered[:, 7:])
    if "bigram_rows" not in changes:
        torch.testing.assert_close(entered[:, [0, 7]], plain[:, [0, 7]])
    assert not torch.isclose(entered[:, 1:7], plain[:, 1:7]).all(-1).any()


def test_a_late_smear_is_its_formula_and_starts_as_the_identity() -> None:
    model, tokens = shaken(tiny(smear="late")), tokens_of_two_documents()
    assert model.smear is not None
    e = model.embed(tokens)
    expected = e.clone()
    for t in range(1, 16):
        gate = torch.sigmoid(e[:, t, :12] @ model.smear.gate)[:, None]
        mixes = (tokens[:, t] != 1)[:, None]
        expected[:, t] += model.smear.scale * gate * e[:, t - 1] * mixes
    torch.testing.assert_close(model.enter(e, tokens), norm(expected))
    fresh = GPT(tiny(smear="late"), seed=0)
    assert torch.equal(fresh.enter(fresh.embed(tokens), tokens), norm(fresh.embed(tokens)))
    assert sum(p.numel() for p in model.smear.parameters()) == 13


def test_an_early_smear_is_its_formula_and_starts_as_the_mean() -> None:
    model, tokens = GPT(tiny(smear="early"), seed=0), tokens_of_two_documents()
    x = norm(model.embed(tokens))
    entered = model.enter(model.embed(tokens), tokens)
    torch.testing.assert_close(entered[:, 1:7], (x[:, 1:7] + x[:, :6]) / 2)
    moved = shaken(tiny(smear="early"))
    assert moved.smear is not None
    x, g = norm(moved.embed(tokens)), torch.sigmoid(moved.smear.share)
    entered = moved.enter(moved.embed(tokens), tokens)
    torch.testing.assert_close(entered[:, 9], (1 - g) * x[:, 9] + g * x[:, 8])


def test_a_bigram_table_is_its_hash_and_starts_as_nothing() -> None:
    model, tokens = shaken(tiny(bigram_rows=31)), tokens_of_two_documents()
    assert model.bigram is not None
    e = model.embed(tokens)
    expected = e.clone()
    for b in range(2):
        for t in range(16):
            now, before = int(tokens[b, t]), int(tokens[b, t - 1])
            row = 30 if t == 0 or now == 1 else ((36313 * now) ^ (27191 * before)) % 30
            found = model.bigram.table.weight[row] @ model.bigram.project.weight.T
            expected[b, t] += model.bigram.scale[0] * found
    torch.testing.assert_close(model.enter(e, tokens), norm(expected))
    fresh = GPT(tiny(bigram_rows=31), seed=0)
    assert torch.equal(fresh.enter(fresh.embed(tokens), tokens), norm(fresh.embed(tokens)))


def test_a_hash_of_the_largest_vocabulary_keeps_within_its_table() -> None:
    model = GPT(tiny(vocab_size=65_536, bigram_rows=3072), seed=0)
    tokens = torch.randint(2, 65_536, (2, 16))
    assert torch.isfinite(model.enter(model.embed(tokens), tokens)).all()


def test_value_embeddings_reach_the_last_layers_alone() -> None:
    model, tokens = shaken(tiny(value_embed_layers=2)), tokens_of_two_documents()
    assert model.value_embed is not None
    shares = [block.attn.value_share for block in model.blocks]
    assert shares[0] is None and shares[1] is not None and shares[2] is not None
    attention, x = model.blocks[1].attn, torch.randn(2, 16, 24)
    embedded = model.value_embed(tokens)
    expected = model.value_embed.scale * (
        model.value_embed.table.weight[tokens] @ model.value_embed.project.weight.T
    )
    torch.testing.assert_close(embedded, expected)
    torch.testing.assert_close(attention.values(x, embedded), attention.v(x) + shares[1] * expected)


def test_an_orthogonal_start_is_orthonormal_and_leaves_the_others() -> None:
    c = ModelConfig(vocab_size=64, n_layers=2, d_model=128, n_heads=4, kv_heads=2, q_rank=0)
    plain, other = GPT(c, seed=3), GPT(dataclasses.replace(c, weight_init="orthogonal"), seed=3)
    for part in ("attn.q", "attn.k", "attn.v", "mlp.fc"):
        weight = other.blocks[0].get_submodule(part).weight
        assert isinstance(weight, torch.Tensor)
        gram = weight @ weight.T if weight.size(0) <= weight.size(1) else weight.T @ weight
        torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)
    for name in ("embed.weight", "blocks.0.attn.out.weight", "blocks.1.mlp.proj.weight"):
        assert torch.equal(plain.get_parameter(name), other.get_parameter(name))


def test_caps_of_either_side() -> None:
    model, tokens = GPT(tiny(softcap_sides=True), seed=0), tokens_of_two_documents()
    plain = GPT(TINY, seed=0)
    states = 40 * torch.randn(2, 3, 24)
    with torch.no_grad():
        assert model.caps is not None
        model.embed.weight.mul_(1000)
        plain.embed.weight.mul_(1000)
        assert torch.equal(model.head(states), plain.head(states))
        model.caps.copy_(torch.tensor([5.0, 20.0]))
        logits = model.head(states)
    assert -20 < logits.min() < -15 and 4 < logits.max() < 5.001
    assert tokens.shape == (2, 16)


@torch.no_grad()  # on a CPU it has no gradient
def test_blocks_of_documents_are_seen_as_their_starts_are() -> None:
    model = shaken(tiny(documents="apart"))
    tokens = torch.randint(2, 64, (3, 16))
    tokens[0, 5] = tokens[1, 0] = tokens[1, 11] = tokens[1, 12] = model.config.bos_id
    starts = model.document_starts(tokens)
    q, k, v = torch.randn(3, 4, 16, 6), torch.randn(3, 2, 16, 6), torch.randn(3, 2, 16, 6)
    attention = model.blocks[0].attn
    blocks = attention.attend(q, k, v, document_blocks(starts))
    torch.testing.assert_close(blocks, attention.attend(q, k, v, starts))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"smear": "late", "bigram_rows": 31},
        {"smear": "early", "value_embed_layers": 3},
        {"key_offset": 0.5},
    ],
    ids=str,
)
def test_documents_that_are_kept_apart_know_nothing_of_each_other(changes: Any) -> None:
    c = tiny(documents="apart", **changes)
    model, tokens = shaken(c), tokens_of_two_documents()
    other = torch.cat((torch.randint(2, 64, (2, 7)), tokens[:, 7:]), dim=1)
    with torch.no_grad():
        assert torch.equal(model.trunk(other)[:, 7:], model.trunk(tokens)[:, 7:])
        mixed = shaken(tiny(**changes))
        assert not torch.allclose(mixed.trunk(other)[:, 7:], mixed.trunk(tokens)[:, 7:])
        # Piece by piece as a whole, also where a document begins in one piece and goes on in the next.
        whole = model.trunk(tokens)
        for sizes in ([3, 5, 8], [7, 1, 1, 7], [1] * 16):
            cache = KVCache(c, 2, torch.float32)
            pieces = [model.trunk(piece, cache) for piece in tokens.split(sizes, dim=1)]
            torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.trunk(tokens, first=9), whole[:, 9:], rtol=1e-4, atol=1e-5)
