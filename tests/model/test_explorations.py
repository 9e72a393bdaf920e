"""The defining property of every exploration, and that none costs anything while it is off."""

import dataclasses
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pargolf.config.schema import ModelConfig
from pargolf.config.validation import validate_model
from pargolf.model.attention import KVCache
from pargolf.model.explorations import ContentRotation, DepthAttention, legendre, mix_profile
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.model.layers import Linear, LowRank
from pargolf.system.errors import UserError
from pargolf.train.start_from import take_weights
from support import matrix, model_options, shaken

TINY = ModelConfig(
    vocab_size=64,
    seq_len=16,
    n_layers=5,
    d_model=24,
    n_heads=4,
    kv_heads=2,
    q_rank=5,
    parallel_from=3,
    loop_from=1,
    loop_to=2,
)
ALL_RANKS = {"k_rank": 2, "v_rank": 3, "out_rank": 4, "fc_rank": 6, "proj_rank": 7}


def tiny(**changes: Any) -> ModelConfig:
    c = dataclasses.replace(TINY, **changes)
    validate_model(c)
    return c


@pytest.mark.parametrize("changes", [*model_options(), ALL_RANKS], ids=str)
def test_an_option_is_causal_trains_every_tensor_and_works_with_the_cache(changes: Any) -> None:
    c = tiny(**changes)
    model = shaken(c)
    tokens = torch.randint(64, (2, 16))
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name
    assert tensor_kinds(model).keys() == dict(model.named_parameters()).keys()
    with torch.no_grad():
        whole = model.head(model.trunk(tokens))
        changed = tokens.clone()
        changed[:, 9] = (changed[:, 9] + 1) % 64
        assert torch.equal(model.head(model.trunk(changed))[:, :9], whole[:, :9])
        cache = KVCache(c, 2, torch.float32)
        pieces = [model.head(model.trunk(piece, cache)) for piece in tokens.split([5, 1, 10], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_explorations_that_are_off_leave_no_trace() -> None:
    off = {name for name, _ in GPT(TINY).named_parameters()}
    assert not any(word in name for name in off for word in ("rotation", "depth", "routing"))
    for changes in ({"mix_init": "sigmoid"}, {"embed_init": "spectral"}):  # inits only
        assert {name for name, _ in GPT(tiny(**changes)).named_parameters()} == off


class Operations(TorchDispatchMode):
    """Notes the name of every operation that PyTorch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operations(**changes: Any) -> list[str]:
    model = GPT(tiny(**changes), seed=0)
    with torch.no_grad(), Operations() as seen:
        model.trunk(torch.zeros(1, 16, dtype=torch.long))
    return seen.names


def test_what_the_plain_model_runs_is_known() -> None:
    """An option that is off adds nothing to it: 7 multiplies a layer, and all that is around them."""
    seen = Counter(operations())
    assert (seen["mm"], seen.total()) == (5 * 7, 485)


def test_explorations_that_are_off_run_no_operation() -> None:
    plain = operations()
    assert not {"cos", "sin", "stack", "_softmax"} & {*plain}
    assert {"cos", "sin"} <= {*operations(rotation_rank=3)}
    assert {"stack", "_softmax"} <= {*operations(depth_attention="softmax")}
    assert operations(mix_init="legendre") == operations(embed_init="spectral") == plain  # inits only
    assert len(operations(k_rank=2)) > len(plain)


def test_a_content_rotation_is_a_rotation_and_starts_as_the_identity() -> None:
    c = tiny(rotation_rank=3)
    fresh, turning = GPT(c, seed=0).blocks[0].rotation, shaken(c).blocks[0].rotation
    assert fresh is not None
    assert turning is not None
    x = torch.randn(2, 7, 24)
    assert torch.equal(fresh(x), x)
    turned = turning(x)
    assert (turned - x).abs().max() > 0.1
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=1e-5)
    assert torch.linalg.det(operator(turning, x[0, 0])).item() == pytest.approx(1, abs=1e-5)


def operator(rotation: ContentRotation, content: Tensor) -> Tensor:
    """The matrix (d, d) that the rotation applies where the content is `content`.

    Read off by the definition: pair i of every basis vector is turned by the content's angle.
    """
    angles = rotation.up(rotation.down(content)).double()
    half = len(angles)
    cos, sin = torch.diag(angles.cos()), torch.diag(angles.sin())
    result = torch.cat((torch.cat((cos, sin), 1), torch.cat((-sin, cos), 1)))
    torch.testing.assert_close((result @ content.double()).float(), rotation(content), rtol=1e-5, atol=1e-5)
    assert result.shape == (2 * half, 2 * half)
    return result


def test_a_content_rotation_compiles_without_graph_breaks() -> None:
    block = shaken(tiny(rotation_rank=3)).blocks[0]
    x = torch.randn(1, 16, 24)
    model = GPT(TINY)
    explanation = torch._dynamo.explain(block)(x, x, model.cos, model.sin)
    assert explanation.graph_break_count == 0
    assert explanation.graph_count == 1


@pytest.mark.parametrize("kind", ["softmax", "signed"])
def test_depth_attention_is_its_formula(kind: Any) -> None:
    torch.manual_seed(0)
    depth = DepthAttention(tiny(depth_attention=kind, depth_order=2))
    with torch.no_grad():
        depth.bias.normal_()
        depth.routing.normal_()
    x0, deltas = torch.randn(2, 3, 24), [torch.randn(2, 3, 24) for _ in range(4)]
    expected = x0.clone()
    for b in range(2):
        for t in range(3):
            scores = []
            for j, delta in enumerate(deltas):
                at = -1 + 2 * j / 4
                place = depth.bias[3] @ torch.tensor([1.0, at, (3 * at * at - 1) / 2])
                vector = delta[b, t] / delta[b, t].square().mean().sqrt()
                scores.append(place + (depth.routing[3] * vector).mean())
            weights = torch.stack(scores).softmax(0) if kind == "softmax" else 1 + torch.stack(scores)
            for weight, delta in zip(weights, deltas, strict=True):
                expected[b, t] += weight * delta[b, t]
    torch.testing.assert_close(depth(x0, deltas), expected, rtol=1e-4, atol=1e-5)


def test_signed_depth_attention_starts_as_the_plain_residual_stream_and_can_go_negative() -> None:
    c = tiny(depth_attention="signed")
    model, plain = shaken(c), shaken(TINY)
    with torch.no_grad():
        state = model.state_dict()
        for name in ("depth.bias", "depth.routing"):
            state[name].zero_()
        # The plain model without mixes and skips: mixes at identity, skips at zero.
        plain.load_state_dict({name: x for name, x in state.items() if "depth." not in name}, strict=False)
        assert plain.skip_weights is not None
        plain.skip_weights.zero_()
        for block in plain.blocks:
            assert block.resid_mix is not None
            block.resid_mix.copy_(torch.tensor([[1.0], [0.0]]).expand(2, 24))
        tokens = torch.randint(64, (2, 16))
        torch.testing.assert_close(model.trunk(tokens), plain.trunk(tokens), rtol=1e-4, atol=1e-5)
        assert model.depth is not None
        model.depth.bias[:, 0] = -3.0  # weight 1 - 3 = -2
        x0, delta = torch.randn(1, 2, 24), torch.randn(1, 2, 24)
        torch.testing.assert_close(model.depth(x0, [delta]), x0 - 2 * delta)


def test_legendre_polynomials_are_those_of_the_books() -> None:
    t = torch.linspace(-1, 1, 9)
    expected = torch.stack((torch.ones(9), t, (3 * t**2 - 1) / 2, (5 * t**3 - 3 * t) / 2), dim=1)
    torch.testing.assert_close(legendre(9, 3), expected)
    assert legendre(4, 0).shape == (4, 1)


def test_mixes_start_as_their_profiles() -> None:
    assert mix_profile(TINY).tolist() == [[1, 0]] * 5
    legendre_2 = mix_profile(tiny(mix_init="legendre"))
    torch.testing.assert_close(legendre_2[:, 1], torch.tensor([0.5, -0.0625, -0.25, -0.0625, 0.5]))
    assert (legendre_2[:, 0] == 1).all()
    sigmoid = mix_profile(tiny(mix_init="sigmoid"))
    for layer in range(5):
        stream = 1 / (1 + math.exp(-3 * (layer / 4 - 0.5)))
        assert sigmoid[layer].tolist() == pytest.approx([stream, 1 - stream])
    model = GPT(tiny(mix_init="sigmoid"), seed=0)
    for layer, block in enumerate(model.blocks):
        assert block.resid_mix is not None
        assert torch.equal(block.resid_mix, sigmoid[layer, :, None].expand(2, 24))


def test_the_spectral_embedding_has_its_spectrum() -> None:
    weight = GPT(tiny(embed_init="spectral"), seed=0).embed.weight.detach()
    values = np.linalg.svd(weight.numpy(), compute_uv=False)
    expected = np.arange(1, 25) ** -0.5
    np.testing.assert_allclose(values / values[0], expected, rtol=1e-4)
    assert weight.norm().item() == pytest.approx(GPT(TINY, seed=0).embed.weight.norm().item(), rel=1e-4)


def test_a_low_rank_start_is_the_truncated_svd_of_the_full_run() -> None:
    full, ranks = shaken(tiny(q_rank=0)), {"q_rank": 5, **ALL_RANKS}
    cut = GPT(tiny(**ranks))
    take_weights(cut, full.state_dict())
    for theirs, mine in zip(full.blocks, cut.blocks, strict=True):
        for a, b, rank in (
            (theirs.attn.q, mine.attn.q, 5), (theirs.attn.k, mine.attn.k, 2), (theirs.attn.v, mine.attn.v, 3),
            (theirs.attn.out, mine.attn.out, 4), (theirs.mlp.fc, mine.mlp.fc, 6),
            (theirs.mlp.proj, mine.mlp.proj, 7),
        ):  # fmt: skip
            assert isinstance(a, Linear)
            assert isinstance(b, LowRank)
            weight = a.weight.detach().numpy()
            u, s, vt = np.linalg.svd(weight)
            np.testing.assert_allclose(
                matrix(b).detach().numpy(), (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-4
            )
    assert torch.equal(full.embed.weight, cut.embed.weight)

    again = GPT(tiny(q_rank=0))  # and back: the product of the factors
    take_weights(again, cut.state_dict())
    tokens = torch.randint(64, (2, 16))
    torch.testing.assert_close(again.trunk(tokens), cut.trunk(tokens), rtol=1e-3, atol=1e-4)


def test_a_start_from_another_shape_is_refused() -> None:
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.k\.weight is 12 x 24 there, 6 x 24 here"):
        take_weights(GPT(tiny(kv_heads=1)), GPT(TINY, seed=0).state_dict())
    with pytest.raises(UserError, match=r"blocks\.4\.\S+ is absent there"):
        take_weights(GPT(TINY), GPT(tiny(n_layers=4), seed=0).state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k_rank": 13}, "model.k_rank must be in 0..12"),
        ({"fc_rank": 25}, "model.fc_rank must be in 0..24"),
        ({"rotation_rank": -1}, "model.rotation_rank must be in 0..65536, is -1"),
        ({"mix_order": 99}, "model.mix_order must be in 0..16"),
        ({"depth_attention": "signed", "mix_init": "sigmoid"}, "model.depth_attention replaces it"),
    ],
)
def test_contradictions_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        tiny(**changes)
