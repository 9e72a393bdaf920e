"""The options of the challenge's records in attention and residual stream: formulas, starts, and shapes."""

import dataclasses
import math
from typing import Any
from unittest.mock import patch

import pytest
import torch

from pargolf.config.presets import load_preset, validated
from pargolf.config.schema import ModelConfig
from pargolf.config.validation import validate_model
from pargolf.model.attention import exclude
from pargolf.model.gpt import GPT
from pargolf.model.layers import norm, rope_base, rotate
from pargolf.system.errors import UserError
from support import shaken

TINY = ModelConfig(
    vocab_size=64, seq_len=16, n_layers=5, d_model=24, n_heads=4, kv_heads=2, q_rank=5, parallel_from=3
)


def tiny(**changes: Any) -> ModelConfig:
    c = dataclasses.replace(TINY, **changes)
    validate_model(c)
    return c


@pytest.mark.parametrize(
    ("record", "count"),
    [
        ("0320", 26_829_913),
        ("0322", 26_993_756),
        ("0323", 26_928_220),
        ("0329", 27_038_812),
        ("0401", 34_401_371),
        ("0405", 35_943_512),
        ("0409", 35_944_536),
        ("0410", 35_944_602),
        ("0427", 35_945_671),
    ],
)
def test_parameters_are_as_many_as_in_the_records_logs(record: str, count: int) -> None:
    c = validated(load_preset(f"record-{record}")).model
    with torch.device("meta"):
        model = GPT(c)
    # The logs count six routes of each layer before the lanes, too, which nothing reads.
    unused = 6 * c.parallel_from if c.parallel == "routed" else 0
    assert sum(p.numel() for p in model.parameters()) + unused == count


def test_exclusive_attention_leaves_nothing_along_the_own_value() -> None:
    y, v = torch.randn(2, 4, 7, 6), torch.randn(2, 2, 7, 6)
    left = exclude(y, v)
    own = v.repeat_interleave(2, dim=1)
    torch.testing.assert_close((left * own).sum(-1), torch.zeros(2, 4, 7), rtol=0, atol=1e-5)
    along = (y * own).sum(-1, keepdim=True) / own.square().sum(-1, keepdim=True) * own
    torch.testing.assert_close(left, y - along)
    assert not exclude(own, v).abs().max() > 1e-6  # a first token has read its own value alone


@pytest.mark.parametrize(("last", "first"), [(2, 3), (9, 0)])
def test_exclusive_attention_is_in_the_last_layers_at_most_in_all(last: int, first: int) -> None:
    model = shaken(tiny(xsa_layers=last))
    x = norm(torch.randn(2, 16, 24))
    for layer, block in enumerate(model.blocks):
        written = block.attn(x, model.cos, model.sin)[:, 0]
        assert bool(written.abs().max() < 1e-5) == (layer >= first)


@pytest.mark.parametrize(
    ("kind", "scale", "start"), [("out", 1.0, 1.0), ("dense", 1.0, 0.5), ("sparse", 0.5, 0.5)]
)
def test_head_gates_are_their_formulas(kind: Any, scale: float, start: float) -> None:
    c = tiny(head_gate=kind, head_gate_scale=scale)
    x = norm(torch.randn(2, 7, 24))
    fresh, gate = GPT(c, seed=0).blocks[0].attn.gate, shaken(c).blocks[0].attn.gate
    assert fresh is not None and gate is not None
    torch.testing.assert_close(fresh(x), torch.full((2, 7, 4), start), rtol=0, atol=0.05)
    read = x if kind == "dense" else x[..., :12]
    expected = torch.sigmoid(scale * read @ gate.weight.T) * (2 if kind == "out" else 1)
    torch.testing.assert_close(gate(x), expected)


def test_a_gate_multiplies_the_output_of_its_head() -> None:
    attention = shaken(tiny(head_gate="sparse")).blocks[0].attn
    model = GPT(TINY)
    x = norm(torch.randn(1, 16, 24))
    assert attention.gate is not None
    with torch.no_grad():
        weight = attention.gate.weight
        weight.zero_()
        half = attention(x, model.cos, model.sin)
        attention.gate = None
        whole = attention(x, model.cos, model.sin)
    torch.testing.assert_close(half, whole / 2)


def test_value_residual_mixes_in_the_first_layers_values() -> None:
    model = shaken(tiny(value_residual=True))
    assert model.blocks[0].attn.value_mix is None
    attention = model.blocks[2].attn
    assert attention.value_mix is not None
    x, first_values = norm(torch.randn(2, 16, 24)), torch.randn(2, 16, 12)
    with torch.no_grad():
        attention.value_mix.copy_(torch.tensor([1.0, 0.0]))
        replaced = attention(x, model.cos, model.sin, first_values=first_values)
        own = attention.v(x)
        attention.value_mix.copy_(torch.tensor([0.0, 1.0]))
        kept = attention(x, model.cos, model.sin, first_values=first_values)
        attention.value_mix.copy_(torch.tensor([1.0, 0.0]))
        same = attention(x, model.cos, model.sin, first_values=own)
    torch.testing.assert_close(kept, same)
    assert not torch.allclose(kept, replaced)


def test_an_offset_takes_the_keys_of_the_first_heads_from_the_token_before() -> None:
    model = shaken(tiny(key_offset=0.5))
    attention = model.blocks[2].attn
    x, follows = torch.randn(2, 16, 24), torch.rand(2, 16) < 0.7
    follows[:, 0] = False
    with patch.object(attention, "attend", wraps=attention.attend) as attend:
        attention(x, model.cos, model.sin, follows=follows)
    own = attention.k(x).unflatten(-1, (2, 6))
    expected = own.clone()
    for row, place in follows.nonzero().tolist():
        expected[row, place, 0] = own[row, place - 1, 0]
    placed = rotate(norm(expected).transpose(1, 2), model.cos, model.sin)
    torch.testing.assert_close(attend.call_args.args[1], placed)


def test_partial_rope_leaves_the_other_dimensions() -> None:
    c = tiny(rope_dims=4)
    attention, model = shaken(c).blocks[0].attn, GPT(c)
    x = torch.randn(1, 4, 16, 6)
    placed = attention._placed(x, model.cos, model.sin)
    assert torch.equal(placed[..., 4:], x[..., 4:]) and not torch.allclose(
        placed[..., 1:, :4], x[..., 1:, :4]
    )
    assert model.cos.shape == (16, 2)
    assert model.cos[3, 1].item() == pytest.approx(math.cos(3 * 1e4**-0.5))


def test_the_base_grows_with_rows_that_are_longer() -> None:
    assert rope_base(tiny(ntk_length=16)) == rope_base(TINY) == 1e4
    assert rope_base(tiny(ntk_length=8)) == pytest.approx(1e4 * 2 ** (6 / 4))
    assert rope_base(load_preset("record-0320").model) / 1e4 == pytest.approx(2.045, abs=1e-3)
    assert rope_base(load_preset("record-0322").model) / 1e4 == pytest.approx(2.21, abs=5e-3)
    assert rope_base(load_preset("record-0401").model) == 1e4


def test_layers_read_less_with_depth() -> None:
    model, plain = shaken(tiny(ln_scale=True)), shaken(TINY)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 16, 24)
    for layer, (scaled, block) in enumerate(zip(model.blocks, plain.blocks, strict=True)):
        expected = block.attention_input(x) / math.sqrt(layer + 1)
        torch.testing.assert_close(scaled.attention_input(x), expected)


def skip_of(model: GPT, i: int, skip: torch.Tensor) -> dict[str, torch.Tensor | None]:
    assert model.skip_weights is not None
    gate = None if model.skip_gates is None else model.skip_gates[i]
    return {"skip": skip, "skip_weight": model.skip_weights[i], "skip_gate": gate}


def test_a_gated_skip_is_its_formula() -> None:
    model = shaken(tiny(skip_gates=True))
    assert model.skip_gates is not None and model.skip_weights is not None
    assert not GPT(tiny(skip_gates=True), seed=0).skip_gates.any()  # type: ignore[union-attr]
    block, (x, x0, skip) = model.blocks[3], torch.randn(3, 2, 16, 24)
    share = torch.sigmoid(model.skip_gates[1])
    joined = share * x + (1 - share) * model.skip_weights[1] * skip
    expected = block(joined, x0, model.cos, model.sin)
    torch.testing.assert_close(block(x, x0, model.cos, model.sin, **skip_of(model, 1, skip)), expected)


@pytest.mark.parametrize("kind", ["joint", "lanes", "routed"])
def test_parallel_layers_are_their_equations(kind: Any) -> None:
    model = shaken(tiny(parallel=kind))
    block, (a, m, x0) = model.blocks[4], torch.randn(3, 2, 16, 24)
    assert block.resid_mix is not None
    u = block.resid_mix[0] * a + block.resid_mix[1] * x0
    attended = block.attn_scale * block.attn(norm(u), model.cos, model.sin)
    fed = block.mlp_scale * block.mlp(norm(u if kind == "joint" else m))
    x = a if kind == "joint" else torch.stack((a, m))
    found = block(x, x0, model.cos, model.sin)
    if kind == "joint":
        expected = u + attended + fed
    elif kind == "lanes":
        expected = torch.stack((a + attended, m + fed))
    else:
        assert block.routes is not None
        (ra, rm), ((aa, fa), (am, fm)) = block.routes.keep, block.routes.add
        expected = torch.stack((ra * a + aa * attended + fa * fed, rm * m + am * attended + fm * fed))
    torch.testing.assert_close(found, expected)
    assert model.blocks[2].routes is None


def test_lanes_begin_alike_and_end_as_one() -> None:
    tokens = torch.randint(2, 64, (2, 16))
    model = shaken(tiny(parallel="lanes"))
    assert model.lane_share is not None
    with torch.no_grad():
        model.lane_share.fill_(1.0)
        only_attention = model.trunk(tokens)
        for block in model.blocks[3:]:
            block.mlp_scale.zero_()
        torch.testing.assert_close(model.trunk(tokens), only_attention)  # nothing crosses to the first lane


def looped(**changes: Any) -> ModelConfig:
    return tiny(loop_times=2, loop_from=1, loop_to=2, **changes)


def test_a_loop_visits_its_layers_again() -> None:
    record = load_preset("record-0409").model
    assert record.visits == (0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10) and record.n_skips == 8
    plain = dataclasses.replace(record, loop_times=0)
    assert plain.visits == tuple(range(11)) and plain.n_skips == 5
    assert looped().visits == (0, 1, 2, 1, 2, 1, 2, 3, 4) and looped().n_skips == 4


@pytest.mark.parametrize("gates", [False, True])
def test_a_looped_model_is_its_visits_written_out(gates: bool) -> None:
    model, tokens = shaken(looped(skip_gates=gates)), torch.randint(2, 64, (2, 16))
    x = x0 = norm(model.embed(tokens))
    skips: list[torch.Tensor] = []
    for visit, layer in enumerate((0, 1, 2, 1, 2, 1, 2, 3, 4)):
        skip = skip_of(model, visit - 4, skips.pop()) if 4 <= visit < 8 else {}
        x = model.blocks[layer](x, x0, model.cos, model.sin, **skip)
        if visit < 4:
            skips.append(x)
    torch.testing.assert_close(model.trunk(tokens), x)


def test_without_the_loop_it_is_the_plain_model() -> None:
    model, plain = shaken(looped()), shaken(TINY)
    state = model.state_dict()
    assert model.skip_weights is not None
    plain.load_state_dict(state | {"skip_weights": state["skip_weights"][:2]})
    model.looped = False
    tokens = torch.randint(2, 64, (2, 16))
    assert torch.equal(model.trunk(tokens), plain.trunk(tokens))
    model.looped = True
    assert not torch.allclose(model.trunk(tokens), plain.trunk(tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loop_times": 1, "loop_from": 3, "loop_to": 2}, "must be layers, in this order"),
        ({"loop_times": 1, "loop_from": 3, "loop_to": 5}, "must be layers, in this order"),
        ({"loop_times": 1, "loop_from": 1, "loop_to": 3, "parallel": "routed"}, r"decoder, 4\.\.4"),
        ({"rope_dims": 3}, "rope_dims 3 must be even"),
        ({"rope_dims": 8}, "at most a head's size, 6"),
        ({"bigram_rows": 1}, "bigram_rows must be 0 or at least 2"),
        ({"parallel": "joint", "parallel_from": 1}, r"parallel_from must be a layer of the decoder, 2\.\.4"),
        ({"parallel": "joint", "depth_attention": "signed"}, "model.parallel has no skips"),
        ({"skip_gates": True, "depth_attention": "signed"}, "model.skip_gates has no skips"),
    ],
)
def test_what_does_not_fit_is_refused(changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(**changes)
