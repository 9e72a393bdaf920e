"""Packing without a goal, in the ways that training text has a say in."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pargolf.config.schema import ExportConfig, ModelConfig, RunConfig
from pargolf.data.shards import TokenStream
from pargolf.export.quantize import Quantized, dequantize, quantize_state
from pargolf.fit.calibrate import calibrate
from pargolf.fit.pack import Calibration, calibrated, rounded
from pargolf.model.gpt import GPT, tensor_kinds
from support import shaken

SMALL = ModelConfig(vocab_size=40, seq_len=8, n_layers=2, d_model=16, n_heads=4, kv_heads=2, q_rank=5)
GPTQ = ExportConfig(attn_bits=4, mlp_bits=4, embed_bits=5, rounding="gptq")


@pytest.fixture
def model() -> GPT:
    return shaken(SMALL)


@pytest.fixture
def calibration(model: GPT) -> Calibration:
    rows = np.random.default_rng(0).integers(0, 40, (64, 9))
    return Calibration(calibrate(shaken(SMALL), rows), rows)


def test_second_order_keeps_steps_and_bits_and_costs_the_outputs_less(
    model: GPT, calibration: Calibration
) -> None:
    state, slots = dict(model.state_dict()), tensor_kinds(model)
    plain = quantize_state(state, slots, GPTQ)
    found = rounded(state, slots, GPTQ, calibration)
    costs = torch.zeros(2)
    for name, m in calibration.moments.items():
        forms = plain[name], found[name]
        assert all(isinstance(form, Quantized) for form in forms)
        assert forms[0].bits == forms[1].bits and torch.equal(forms[0].scale, forms[1].scale)  # type: ignore[union-attr]
        for k, form in enumerate(forms):
            error = state[name] - dequantize(form)  # type: ignore[arg-type]
            costs[k] += ((error @ m.inputs) * error).sum()
    assert costs[1] < 0.8 * costs[0]
    vectors = [name for name, slot in slots.items() if slot.kind == "vector"]
    assert all(torch.equal(found[name], plain[name]) for name in vectors)  # type: ignore[arg-type]


def test_signs_alone_are_left_as_they_are(model: GPT, calibration: Calibration) -> None:
    state, slots = dict(model.state_dict()), tensor_kinds(model)
    export = replace(GPTQ, mlp_bits=1)
    name = "blocks.0.mlp.fc.weight"
    form = rounded(state, slots, export, calibration)[name]
    assert isinstance(form, Quantized)
    assert torch.equal(form.values.float(), torch.where(state[name] < 0, -1.0, 1.0))


@pytest.mark.parametrize(
    "export",
    [
        ExportConfig(),
        ExportConfig(attn_sigmas=13.0, mlp_sigmas=11.5, embed_sigmas=14.0),
        ExportConfig(lqer_rank=2),
    ],
)
def test_training_text_is_opened_only_where_it_is_needed(export: ExportConfig, model: GPT) -> None:
    def refuse() -> TokenStream:
        raise AssertionError("training text was opened")

    assert calibrated(RunConfig(SMALL, export=export), model, refuse) is None
    for reading in ({"rounding": "gptq"}, {"lqer_rank": 2, "lqer_weighted": True}, {"model_bytes": 9}):
        with pytest.raises(AssertionError, match="was opened"):
            calibrated(RunConfig(SMALL, export=replace(export, **reading)), model, refuse)
