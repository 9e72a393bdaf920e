"""The challenge's baseline format, written again from its description: the same values, the same size.

Source: the challenge's baseline of 2026-03-17. A matrix of more than 65,536 values is int8 by rows: the
clip is the quantile 0.9999984 of the row's magnitudes, the step clip / 127 and at least 1/127; the
integers come from the float32 step, the file holds a float16 one. Smaller matrices are float16, gains,
scales, mixes and skip weights float32. All tensors go through torch.save and zlib.
"""

import io
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pargolf.config.kinds import Slot
from pargolf.config.presets import load_preset
from pargolf.config.schema import ModelConfig
from pargolf.export.artifact import pack, unpack
from pargolf.export.quantize import dequantize, quantize_rows, round_rows
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.train.qat import quantized

BASELINE = load_preset("baseline")
AS_INITIALIZED = 4_916_832  # bytes, as the challenge's script writes its model before the first step
Stored = dict[str, NDArray[np.generic] | tuple[NDArray[np.int8], NDArray[np.float16]]]


def clips(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows,): the quantile of torch.quantile, whose rank is a float32 and whose last step is fused."""
    magnitudes = np.sort(np.abs(weight), axis=1)
    last = weight.shape[1] - 1
    rank = np.float32(0.9999984) * np.float32(last)
    below = int(rank)
    low, high = magnitudes[:, below], magnitudes[:, min(below + 1, last)]
    share = rank - np.float32(below)
    start, factor = (low, share) if share < 0.5 else (high, share - np.float32(1))
    return (start + np.float64(factor) * (high - low)).astype(np.float32)


def int8_rows(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Values and steps of a large matrix."""
    clip = clips(weight)
    step = np.maximum(clip / np.float32(127), np.float32(1 / 127))
    values = np.rint(np.clip(weight.T, -clip, clip) / step).T
    return values.astype(np.int8), step.astype(np.float16)


def stored(state: dict[str, Tensor], slots: dict[str, Slot]) -> Stored:
    kept: Stored = {}
    for name, tensor in state.items():
        weight = tensor.numpy()
        if slots[name].kind == "vector":
            kept[name] = weight
        else:
            kept[name] = int8_rows(weight) if weight.size > 65_536 else weight.astype(np.float16)
    return kept


def meant(x: NDArray[np.generic] | tuple[NDArray[np.int8], NDArray[np.float16]]) -> NDArray[np.float32]:
    if isinstance(x, tuple):
        values, step = x
        return values.astype(np.float32) * step.astype(np.float32)[:, None]
    return x.astype(np.float32)


def saved_bytes(kept: Stored) -> int:
    """Size of the file, with the tables that tell a reader what is what."""
    rows = {name: x for name, x in kept.items() if isinstance(x, tuple)}
    file = io.BytesIO()
    content = {
        "format": "int8 by rows",
        "values": {name: torch.from_numpy(values) for name, (values, _) in rows.items()},
        "steps": {name: torch.from_numpy(step) for name, (_, step) in rows.items()},
        "dtypes": dict.fromkeys(rows, "float32"),
        "floats": {name: torch.from_numpy(x) for name, x in kept.items() if not isinstance(x, tuple)},
    }
    torch.save(content, file)
    return len(zlib.compress(file.getvalue(), 9))


def weights(model: GPT, how: str) -> dict[str, Tensor]:
    """A model's weights as they are, or matrices as after training: rows of many sizes, heavy tails."""
    g = torch.Generator().manual_seed(0)
    state = {name: x.detach().clone() for name, x in model.state_dict().items()}
    for name, slot in tensor_kinds(model).items():
        shape = state[name].shape
        if how == "initialized" or slot.kind == "vector":
            continue
        sizes = 2.0 if how == "rows above 1" else 4 * torch.rand(shape[0], 1, generator=g) ** 4
        state[name] = torch.randn(shape, generator=g) * sizes
        state[name][:, ::97] *= 1.5
    return state


@pytest.mark.parametrize("how", ["initialized", "trained", "rows above 1"])
def test_the_baseline_s_file_holds_the_challenge_s_values_in_as_many_bytes(how: str) -> None:
    model = GPT(BASELINE.model, seed=1337)
    state, slots = weights(model, how), tensor_kinds(model)
    data = pack(state, slots, BASELINE.model, BASELINE.export, "0" * 64)
    expected = stored(state, slots)
    read = unpack(data).state
    assert read.keys() == expected.keys()
    for name, x in read.items():
        assert np.array_equal(x.numpy(), meant(expected[name])), name
    bytes_there = AS_INITIALIZED if how == "initialized" else saved_bytes(expected)
    # Each kind of each layer is compressed by itself: before the first step that saves 0.1 %.
    assert len(data) == pytest.approx(bytes_there, rel=0.0011 if how == "initialized" else 0.001)


def test_small_matrices_stay_float16_in_a_small_model() -> None:
    c = ModelConfig(vocab_size=258, seq_len=8, n_layers=2, d_model=256, n_heads=4, kv_heads=2, q_rank=0)
    model = GPT(c, seed=0)
    state, slots = weights(model, "trained"), tensor_kinds(model)
    expected = stored(state, slots)
    assert {name for name, x in expected.items() if isinstance(x, tuple)} == {
        "embed.weight", *(f"blocks.{i}.mlp.{name}.weight" for i in (0, 1) for name in ("fc", "proj"))
    }  # fmt: skip
    assert state["blocks.0.attn.q.weight"].numel() == 65_536
    read = unpack(pack(state, slots, c, BASELINE.export, "0" * 64)).state
    assert all(np.array_equal(x.numpy(), meant(expected[name])) for name, x in read.items())
    model.load_state_dict(state)
    with quantized(model, BASELINE.export):  # what training aims at is what the file holds
        for name, x in model.state_dict().items():
            assert torch.equal(x, read[name] if isinstance(expected[name], tuple) else state[name])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    cols=st.integers(1, 300),
    magnitude=st.sampled_from([0.0, 1e-9, 1e-3, 0.05, 0.3, 1.0, 30.0]),
)
def test_rows_of_any_width_and_size_are_rounded_as_there(seed: int, cols: int, magnitude: float) -> None:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(64, cols, generator=g) ** 3 * magnitude
    values, step = int8_rows(weight.numpy())
    q = quantize_rows(weight, 8, BASELINE.export)
    assert np.array_equal(q.values.numpy(), values) and np.array_equal(q.scale.numpy(), step)
    assert torch.equal(round_rows(weight, 8, BASELINE.export), dequantize(q))
