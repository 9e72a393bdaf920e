"""Quantization-aware training: what is seen, what is updated, and from when on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pargolf.cli import dispatch
from pargolf.config.schema import ExportConfig, ModelConfig, OptimConfig
from pargolf.export.artifact import pack, unpack
from pargolf.export.quantize import dequantize_state, quantize_state
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.optim.groups import Optimizers
from pargolf.run.folder import read_lines
from pargolf.train.qat import quantized
from support import Dataset, shaken, training_of

TINY = ModelConfig(vocab_size=512, seq_len=32, n_layers=2, d_model=16, n_heads=2, kv_heads=1, q_rank=4)
EXPORT = ExportConfig(attn_bits=4, mlp_bits=5, embed_bits=32, vector_bits=32)


def weights(model: GPT) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attn_bits": 2, "mlp_bits": 2, "layout": "range"},
        {"attn_bits": 1, "mlp_bits": 1},
        {"attn_sigmas": 13.0, "mlp_sigmas": 11.5},
    ],
)
def test_inside_are_the_matrices_of_the_artifact_and_after_it_those_from_before(
    changes: dict[str, Any],
) -> None:
    model, export = shaken(TINY), replace(EXPORT, **changes)
    before = weights(model)
    packed = unpack(pack(before, tensor_kinds(model), TINY, export, "0" * 64)).state
    with pytest.raises(RuntimeError, match="stop"), quantized(model, export):
        for name, p in model.named_parameters():
            kind = tensor_kinds(model)[name].kind
            assert torch.equal(p, packed[name] if kind in ("attn", "mlp") else before[name]), name
        raise RuntimeError("stop")
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name


def test_a_step_takes_the_gradient_there_and_applies_it_here(dataset: Dataset) -> None:
    model, rounded = shaken(TINY), shaken(TINY)
    training = training_of(model, dataset, 64, 1)
    rounded.load_state_dict(dequantize_state(quantize_state(weights(model), tensor_kinds(model), EXPORT)))
    x, y = (torch.from_numpy(array) for array in training.batches.micro_batch(0, 0))
    expected_loss = rounded(x, y)
    gradients = torch.autograd.grad(expected_loss, list(rounded.parameters()))
    by_hand = GPT(TINY)
    by_hand.load_state_dict(model.state_dict())
    for p, gradient in zip(by_hand.parameters(), gradients, strict=True):
        p.grad = gradient
    Optimizers(by_hand, OptimConfig(), torch.float32).step(1.0, 0.9)

    loss = training.step(0, 1.0, 0.9, quantized(model, EXPORT))
    assert torch.equal(loss, expected_loss)
    for (name, p), q in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_it_starts_late_in_the_run_and_shows(dataset: Dataset, tmp_path: Path) -> None:
    losses = {}
    for share in (0.0, 0.5):
        name = f"share{share}"
        options = dataset.options(train__qat_share=share, export__mlp_bits=4, train__iterations=6)
        assert dispatch(["train", "demo", "--runs", str(tmp_path), "--name", name, *options]) == 0
        rows = read_lines(tmp_path / name / "metrics.jsonl")
        losses[share] = [row["train_loss"] for row in rows if "train_loss" in row]
    assert losses[0.0][:3] == losses[0.5][:3]
    assert losses[0.0][3:] != losses[0.5][3:]


@pytest.mark.slow
def test_compiled_layers_see_the_rounded_weights_too() -> None:
    model = shaken(TINY)
    tokens = torch.randint(512, (2, 33))
    x, y = tokens[:, :-1], tokens[:, 1:]

    def losses() -> tuple[float, float]:
        plain = float(model(x, y))
        with quantized(model, EXPORT):
            return plain, float(model(x, y))

    eager = losses()
    model.compile_regions()
    assert eager[0] != pytest.approx(eager[1], rel=1e-5)
    assert losses() == pytest.approx(eager, rel=1e-5)
