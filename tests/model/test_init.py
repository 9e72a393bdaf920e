"""What each parameter carries from where it is created: its kind and its first values."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pargolf.config.schema import ExportConfig, ModelConfig, OptimConfig
from pargolf.export.quantize import Quantized
from pargolf.fit.calibrate import calibrate
from pargolf.fit.price import prepare_state, state_at
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.model.init import init_weights, matrix, uniform, vector
from pargolf.model.layers import Linear
from pargolf.optim.groups import Optimizers
from pargolf.train.qat import quantized
from support import model_options

TINY = ModelConfig(vocab_size=64, seq_len=16, n_layers=5, d_model=24, n_heads=4, kv_heads=2, q_rank=0)
# The options that say how a tensor starts, and that tensor; all others are to leave every start alone.
STARTS = {
    "mix_init": "resid_mix",
    "embed_init": "embed.weight",
    "embed_std": "embed.weight",
    "q_gain": "q_gain",
    "loop_times": "skip_weights",  # there are more of them
}


@pytest.mark.parametrize("option", model_options(), ids=str)
def test_an_option_leaves_the_start_of_all_other_tensors_as_it_was(option: dict[str, Any]) -> None:
    plain = GPT(TINY, seed=1).state_dict()
    other = GPT(dataclasses.replace(TINY, **option), seed=1).state_dict()
    name_of_option = next(iter(option))
    shared = plain.keys() & other.keys()
    assert len(shared) > 20
    for name in shared:
        same = plain[name].shape == other[name].shape and torch.equal(plain[name], other[name])
        assert same or STARTS.get(name_of_option, "none") in name, name


def test_more_layers_leave_the_start_of_the_first_as_it_was() -> None:
    plain = GPT(TINY, seed=1).state_dict()
    deeper = GPT(dataclasses.replace(TINY, n_layers=7), seed=1).state_dict()
    assert all(torch.equal(plain[name], deeper[name]) for name in plain if name != "skip_weights")


def test_seeds_and_names_start_differently() -> None:
    one, other = GPT(TINY, seed=1).state_dict(), GPT(TINY, seed=2).state_dict()
    for name in ("embed.weight", "blocks.0.attn.q.weight"):
        assert not torch.equal(one[name], other[name])
    assert not torch.equal(one["blocks.0.attn.q.weight"], one["blocks.1.attn.q.weight"])


def test_a_start_fills_its_range() -> None:
    layer = nn.Module()
    layer.w = matrix(300, 400, "mlp", uniform)
    init_weights(layer, 3)
    bound = 1 / math.sqrt(400)
    assert layer.w.abs().max() <= bound
    assert layer.w.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_vectors_start_at_what_they_are_given() -> None:
    assert torch.equal(vector(3, 1.5), torch.full((3,), 1.5))
    assert torch.equal(vector((2, 3), torch.tensor([[1.0], [0.5]])), torch.tensor([[1.0] * 3, [0.5] * 3]))
    with torch.device("meta"):
        assert vector((2, 3), torch.zeros(2, 1)).is_meta


class Gated(GPT):
    """A model with a matrix of kind "vector", as small gates are."""

    def __init__(self, c: ModelConfig, seed: int):
        super().__init__(c)
        self.gate = Linear(c.d_model, c.d_model, kind="vector")
        init_weights(self, seed)

    def head(self, states: Tensor) -> Tensor:
        return super().head(states + self.gate(states))


@pytest.fixture
def gated() -> Iterator[Gated]:
    yield Gated(TINY, seed=0)


def test_the_kind_decides_and_not_the_module_it_stands_in(gated: Gated) -> None:
    """A `Linear` of kind "vector" is trained by Adam and never rounded, by no quantizer there is."""
    optimizers = Optimizers(gated, OptimConfig(), torch.float32)
    assert gated.gate.weight not in optimizers.muon.state
    assert gated.blocks[0].attn.k.weight in optimizers.muon.state
    before = gated.gate.weight.detach().clone()
    with quantized(gated, ExportConfig(attn_bits=4, mlp_bits=4)):
        assert torch.equal(gated.gate.weight, before)
    slots = tensor_kinds(gated)
    moments = calibrate(gated, torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(0)).numpy())
    assert "gate.weight" not in moments
    stored = state_at(prepare_state(dict(gated.state_dict()), slots, moments), price=1e-3)
    assert {name for name, x in stored.items() if not isinstance(x, Quantized)} == {
        name for name, slot in slots.items() if slot.kind == "vector"
    }
    assert torch.equal(stored["gate.weight"], before.half())  # type: ignore[arg-type]
