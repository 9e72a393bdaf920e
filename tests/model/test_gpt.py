"""The model's shape, init, equations and kinds of tensors."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from pargolf.config.kinds import TENSOR_KINDS
from pargolf.config.presets import load_preset
from pargolf.config.schema import ModelConfig
from pargolf.model.attention import KVCache
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.model.layers import Linear, LowRank
from support import matrix, shaken

TINY = ModelConfig(vocab_size=64, seq_len=16, n_layers=5, d_model=24, n_heads=4, kv_heads=2, q_rank=5)


@pytest.mark.parametrize(
    ("preset", "count"), [("baseline", 17_059_912), ("full-q", 26_501_720), ("lowrank-q192", 25_780_824)]
)
def test_parameter_counts_are_the_published_ones(preset: str, count: int) -> None:
    with torch.device("meta"):
        model = GPT(load_preset(preset).model)
    assert sum(p.numel() for p in model.parameters()) == count


def test_forward_is_the_reference_equations() -> None:
    model, c = shaken(TINY), TINY
    tokens, targets = torch.randint(64, (2, 16)), torch.randint(64, (2, 16))

    def rms(x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.size(-1),))

    x = x0 = rms(model.embed.weight[tokens])
    skips: list[torch.Tensor] = []
    encoders = c.n_layers // 2
    assert model.skip_weights is not None
    for i, block in enumerate(model.blocks):
        if i >= encoders and skips:
            x = x + model.skip_weights[i - encoders] * skips.pop()
        assert block.resid_mix is not None
        x = block.resid_mix[0] * x + block.resid_mix[1] * x0
        x = x + block.attn_scale * block.attn(rms(x), model.cos, model.sin)
        hidden = torch.relu(rms(x) @ matrix(block.mlp.fc).T) ** 2
        x = x + block.mlp_scale * (hidden @ matrix(block.mlp.proj).T)
        if i < encoders:
            skips.append(x)
    assert not skips
    logits = 30 * torch.tanh(rms(x) @ model.embed.weight.T / 30)
    expected = -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()
    torch.testing.assert_close(model(tokens, targets), expected)


def test_init_has_its_documented_deviations() -> None:
    c = ModelConfig(vocab_size=512, n_layers=2, d_model=256, n_heads=4, kv_heads=2, q_rank=64)
    model = GPT(c, seed=5)
    assert model.embed.weight.std().item() == pytest.approx(0.005, rel=0.02)
    for block in model.blocks:
        assert isinstance(block.attn.q, LowRank)
        for part in (block.attn.q.down, block.attn.q.up, block.attn.k, block.attn.v, block.mlp.fc):
            assert isinstance(part, Linear)
            assert part.weight.std().item() == pytest.approx(1 / math.sqrt(3 * part.weight.size(1)), rel=0.02)
        assert not matrix(block.attn.out).any()
        assert not matrix(block.mlp.proj).any()
        assert torch.equal(block.attn.q_gain, torch.full((4,), 1.5))
        assert block.resid_mix is not None
        assert (block.resid_mix[0] == 1).all()
        assert (block.resid_mix[1] == 0).all()
    assert model.skip_weights is not None
    assert torch.equal(model.skip_weights, torch.ones(1, 256))


def test_seed_decides_the_init() -> None:
    first, again, other = (GPT(TINY, seed=s).state_dict() for s in (7, 7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


def test_untrained_layers_are_the_identity() -> None:
    model = GPT(TINY, seed=0)
    x = torch.randn(1, 16, 24)
    torch.testing.assert_close(model.blocks[0](x, torch.zeros_like(x), model.cos, model.sin), x)


def test_later_tokens_change_nothing_before_them() -> None:
    model = shaken(TINY)
    tokens = torch.randint(64, (1, 16))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 64
    before, after = model.trunk(tokens), model.trunk(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("q_rank", [0, 5])
@pytest.mark.parametrize("first", [0, 1, 9, 15])
def test_states_from_a_position_on_are_those_of_all(first: int, q_rank: int) -> None:
    c = dataclasses.replace(TINY, q_rank=q_rank)
    model, tokens = shaken(c), torch.randint(64, (2, 16))
    torch.testing.assert_close(model.trunk(tokens, first=first), model.trunk(tokens)[:, first:])
    cache = KVCache(c, 2, torch.float32)
    with torch.no_grad():
        model.trunk(tokens[:, :3], cache)
        continued = model.trunk(tokens[:, 3:], cache, first=max(0, first - 3))
    torch.testing.assert_close(continued, model.trunk(tokens)[:, max(3, first) :], rtol=1e-4, atol=1e-5)


def test_the_last_layer_is_spared_the_positions_before() -> None:
    model, tokens = shaken(TINY), torch.randint(64, (2, 16))
    flops = []
    for first in (0, 12):
        with FlopCounterMode(display=False) as counter:
            model.trunk(tokens, first=first)
        flops.append(counter.get_flop_counts()["Global"][torch.ops.aten.mm])
    last = model.blocks[-1]
    spared = (*last.attn.q.parameters(), *last.attn.out.parameters(), *last.mlp.parameters())
    assert flops[0] - flops[1] == 2 * 12 * 2 * sum(p.numel() for p in spared)


def test_bfloat16_activations_keep_float32_parameters() -> None:
    model = GPT(TINY, torch.bfloat16, seed=0)
    assert model.trunk(torch.zeros(1, 4, dtype=torch.long)).dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert (
        model(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)).dtype == torch.float32
    )


def test_every_tensor_has_one_kind_and_every_kind_is_used() -> None:
    model = GPT(TINY)
    slots = tensor_kinds(model)
    assert set(slots) == {name for name, _ in model.named_parameters()}
    others = tensor_kinds(GPT(dataclasses.replace(TINY, bigram_rows=9, head_gate="sparse")))
    assert {slot.kind for slot in (slots | others).values()} == set(TENSOR_KINDS)
    assert slots["blocks.3.attn.q.down.weight"].kind == "attn"
    assert slots["blocks.3.attn.q.down.weight"].layer == 3
    assert slots["blocks.4.resid_mix"].kind == "vector"


def test_a_tensor_without_a_kind_is_an_error() -> None:
    model = GPT(TINY)
    model.blocks[0].register_parameter("stray", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(ValueError, match=r"blocks\.0\.stray"):
        tensor_kinds(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"rotation_rank": 3}, {"depth_attention": "signed", "n_layers": 12}], ids=str
)
def test_compiled_regions_give_the_same_loss_and_gradients(changes: Any) -> None:
    c = dataclasses.replace(TINY, **changes)
    plain, compiled = shaken(c), shaken(c)
    compiled.compile_regions()
    tokens, targets = torch.randint(64, (2, 16)), torch.randint(64, (2, 16))
    losses = [model(tokens, targets) for model in (plain, compiled)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1])
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)
