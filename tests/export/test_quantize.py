import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pargolf.config.kinds import Slot
from pargolf.config.schema import ExportConfig
from pargolf.export.quantize import (
    Quantized,
    dequantize,
    dequantize_state,
    of_digits,
    quantize_rows,
    quantize_state,
    top_value,
)
from pargolf.system.errors import UserError


def random_rows(seed: int, rows: int, cols: int, magnitude: float) -> Tensor:
    """Heavy-tailed rows of very different sizes, as trained weights have."""
    g = torch.Generator().manual_seed(seed)
    size = torch.rand(rows, 1, generator=g) * magnitude
    return torch.randn(rows, cols, generator=g) ** 3 * size


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 9),
    cols=st.integers(1, 40),
    bits=st.integers(3, 8),
    quantile=st.sampled_from([0.5, 0.9, 0.9999984, 1.0]),
    magnitude=st.sampled_from([1e-9, 1e-5, 1e-3, 1.0, 100.0]),
)
def test_error_is_at_most_half_a_step_within_the_clip(
    seed: int, rows: int, cols: int, bits: int, quantile: float, magnitude: float
) -> None:
    w = random_rows(seed, rows, cols, magnitude)
    q = quantize_rows(w, bits, ExportConfig(clip_quantile=quantile))
    top = 2 ** (bits - 1) - 1
    assert q.values.dtype == torch.int8 and q.values.shape == w.shape
    assert q.scale.dtype == torch.float16 and q.scale.shape == (rows,)
    assert q.values.abs().max() <= top
    scale = q.scale.double()[:, None]
    # Rounding the scale to float16 may put the row's largest value a little above top.
    kept = w.double().abs() <= (top + 0.5) * scale
    if quantile == 1.0:  # nothing is clipped, unless float16 has few digits left for the scale
        assert (kept | (scale < 2.0**-14)).all()
    error = (w.double() - dequantize(q).double()).abs()
    assert (error <= scale * 0.50001)[kept].all()
    # What is clipped is stored as the largest value of its sign.
    assert (q.values.double() == w.sign() * top)[~kept].all()


@pytest.mark.parametrize("quantile", [0.5, 0.77, 0.9999984, 1.0])
@pytest.mark.parametrize("cols", [1, 2, 3, 50, 257])
def test_clip_is_the_quantile_of_torch(cols: int, quantile: float) -> None:
    w = random_rows(3, 3000, cols, 1.0)
    expected = (torch.quantile(w.abs(), quantile, dim=1) / 31).clamp_min(2.0**-24).half()
    assert torch.equal(quantize_rows(w, 6, ExportConfig(clip_quantile=quantile)).scale, expected)


def test_zero_and_tiny_rows_have_a_usable_scale() -> None:
    w = torch.stack((torch.zeros(8), torch.full((8,), 1e-12), torch.arange(8.0)))
    q = quantize_rows(w, 6, ExportConfig(clip_quantile=1.0))
    assert (q.scale > 0).all()
    assert q.values[:2].eq(0).all() and q.values[2].max() == 31


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e8])
def test_weights_that_cannot_be_stored_are_refused_by_name(bad: float) -> None:
    w = torch.ones(4, 4)
    w[2] = bad
    with pytest.raises(UserError, match=r"^blocks\.3\.q "):
        quantize_rows(w, 6, ExportConfig(), "blocks.3.q")
    with pytest.raises(UserError, match="vec"):
        quantize_state({"vec": w}, {"vec": Slot("vector", 0)}, ExportConfig(vector_bits=16))


@pytest.mark.parametrize("shape", [(4,), (0, 4), (4, 0), (2, 2, 2)])
def test_only_matrices_are_quantized(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot quantize"):
        quantize_rows(torch.ones(shape), 6, ExportConfig())


def test_two_bits_are_the_nearest_of_minus_mean_zero_and_mean() -> None:
    w = random_rows(5, 40, 33, 1.0)
    q = quantize_rows(w, 2, ExportConfig())
    mean = w.abs().mean(dim=1, keepdim=True).half().float()
    choices = torch.stack((-mean, torch.zeros_like(mean), mean)).expand(3, 40, 33)
    nearest = (choices - w).abs().argmin(dim=0) - 1
    assert torch.equal(q.values.long(), nearest)
    assert torch.equal(q.scale.float(), mean[:, 0])
    assert set(q.values.unique().tolist()) == {-1, 0, 1}


def test_one_bit_is_the_sign_and_zero_counts_as_positive() -> None:
    w = random_rows(6, 40, 33, 1.0)
    w[0] = 0
    q = quantize_rows(w, 1, ExportConfig())
    assert torch.equal(q.values.float(), torch.where(w < 0, -1.0, 1.0))
    torch.testing.assert_close(dequantize(q)[1:].abs().mean(1), w.abs().mean(1)[1:], rtol=1e-3, atol=0)
    assert (dequantize(q)[0] < 1e-7).all()


@pytest.mark.parametrize("sigmas", [2.5, 12.85])
def test_sigmas_set_the_step_by_the_deviation_of_the_row(sigmas: float) -> None:
    w = random_rows(7, 40, 33, 1.0)
    q = quantize_rows(w, 6, ExportConfig(), sigmas=sigmas)
    torch.testing.assert_close(q.scale.float(), sigmas * w.std(dim=1) / 31, rtol=1e-3, atol=0)
    assert torch.equal(q.values.float(), (w / q.scale.float()[:, None]).round().clamp(-31, 31))
    assert dequantize(quantize_rows(w[:, :1], 6, ExportConfig(), sigmas=sigmas)).abs().max() < 1e-5


def test_sigmas_are_those_of_the_kind() -> None:
    state = {name: torch.randn(4, 8) for name in ("e", "a", "m", "g")}
    slots = {"e": Slot("embed", None), "a": Slot("attn", 0), "m": Slot("mlp", 0), "g": Slot("gate", 0)}
    export = ExportConfig(embed_bits=7, embed_sigmas=14.0, attn_sigmas=13.0, mlp_sigmas=11.5, gate_bits=8)
    stored = quantize_state(state, slots, export)
    for name, bits, sigmas in (("e", 7, 14.0), ("a", 6, 13.0), ("m", 6, 11.5), ("g", 8, 0.0)):
        expected = quantize_rows(state[name], bits, export, sigmas=sigmas)
        form = stored[name]
        assert isinstance(form, Quantized)
        assert torch.equal(form.scale, expected.scale) and torch.equal(form.values, expected.values)


@pytest.mark.parametrize("digits", [0, 1, 4, 10])
def test_scales_of_few_digits_are_the_nearest_of_them(digits: int) -> None:
    mantissas = 1 + torch.arange(2**digits, dtype=torch.float64) / 2**digits
    grid = (mantissas * torch.tensor([[2.0**-9], [2.0**-8], [2.0**-7]])).flatten().sort().values
    scale = torch.rand(500, generator=torch.Generator().manual_seed(0)) * 2**-8 + 2**-9
    near = of_digits(scale, digits).double()
    assert torch.equal((near - scale).abs(), (grid[:, None] - scale).abs().amin(dim=0))
    assert torch.equal(of_digits(near.float(), digits), near.float())  # what has few digits keeps them


@pytest.mark.parametrize("bits", [1, 2, 6])
@pytest.mark.parametrize("sigmas", [0.0, 12.85])
def test_values_are_rounded_at_the_scales_of_few_digits(bits: int, sigmas: float) -> None:
    w = random_rows(0, 50, 40, 1.0) + 1e-3
    whole = quantize_rows(w, bits, ExportConfig(), sigmas=sigmas)
    few = quantize_rows(w, bits, ExportConfig(scale_bits=3), sigmas=sigmas)
    assert not torch.equal(few.scale, whole.scale)
    assert not (few.scale.view(torch.int16) & 0b1111111).any()
    torch.testing.assert_close(few.scale, whole.scale, rtol=1 / 16 + 1e-3, atol=0)
    top = top_value(bits)
    nearest = (w / few.scale.float()[:, None]).round().clamp(-top, top)
    assert torch.equal(few.values.float(), w.sign() if bits == 1 else nearest)


def test_a_tiny_row_keeps_a_scale_whatever_its_digits() -> None:
    for digits in (0, 4):
        q = quantize_rows(torch.tensor([[1e-7, -1e-9], [0.0, 0.0]]), 6, ExportConfig(scale_bits=digits))
        assert (q.scale > 0).all()


@pytest.mark.parametrize("bits", [0, 9])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="cannot quantize"):
        quantize_rows(torch.ones(2, 2), bits, ExportConfig())


def test_more_than_16_million_elements() -> None:
    w = torch.zeros(17_000, 1000)
    w[-1, -1] = 1.0
    assert quantize_rows(w, 6, ExportConfig(clip_quantile=1.0)).values[-1, -1] == 31


def test_each_kind_is_stored_with_its_own_bits() -> None:
    state = {name: torch.randn(4, 8) for name in ("e", "a", "m", "v")}
    slots = {"e": Slot("embed", None), "a": Slot("attn", 0), "m": Slot("mlp", 0), "v": Slot("vector", 0)}
    stored = quantize_state(
        state, slots, ExportConfig(embed_bits=16, attn_bits=4, mlp_bits=8, vector_bits=32)
    )
    assert isinstance(stored["a"], Quantized) and stored["a"].bits == 4
    assert isinstance(stored["m"], Quantized) and stored["m"].values.abs().max() == top_value(8)
    assert isinstance(stored["e"], Tensor) and stored["e"].dtype == torch.float16
    back = dequantize_state(stored)
    assert all(x.dtype == torch.float32 for x in back.values())
    assert torch.equal(back["v"], state["v"]) and torch.equal(back["e"], state["e"].half().float())
    assert torch.equal(back["a"], dequantize(stored["a"]))


def test_every_tensor_needs_a_slot_and_every_slot_a_tensor() -> None:
    x = torch.ones(2, 2)
    for state, slots in (({"a": x}, {}), ({}, {"a": Slot("attn", 0)})):
        with pytest.raises(ValueError, match="'a'"):
            quantize_state(state, slots, ExportConfig())
