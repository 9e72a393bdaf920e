"""Corrections of low rank: what they are made of, what they make good, and what is stored of them."""

import pytest
import torch
from torch import Tensor

from pargolf.config.schema import ExportConfig
from pargolf.export.quantize import Quantized, dequantize, quantize_rows
from pargolf.export.section import decode_section, encode_section
from pargolf.fit.gptq import Moments
from pargolf.fit.lqer import corrected, factored


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uneven_inputs(cols: int, seed: int = 1) -> Tensor:
    """Second moments of inputs of which a few are far larger than the others."""
    x = random(400, cols, seed=seed) * torch.logspace(0, -2, cols)
    return x.T @ x / 400


def test_an_error_of_low_rank_is_made_good_but_for_the_rounding_of_its_factors() -> None:
    error = random(60, 3) @ random(3, 90, seed=1)
    as_in_records, better = factored(error, 3), factored(error, 3, torch.eye(90))
    assert (error - as_in_records.matrix()).norm() < 0.7 * error.norm()
    assert (error - better.matrix()).norm() < 0.45 * error.norm()
    # The grids are those of thread 1797: 2 bits with one scale, 4 bits with one for 64 values.
    correction = factored(error, 3)
    assert (int(correction.left.min()), int(correction.left.max())) == (-2, 1)
    assert correction.right.abs().max() <= 8 and correction.right_scale.shape == (5,)


def test_what_is_largest_is_corrected_and_nothing_else() -> None:
    export = ExportConfig(lqer_rank=2, lqer_matrices=2)
    sizes = {"small": 0.1, "large": 3.0, "mid": 1.0}
    state = {name: size * random(20, 30, seed=k) for k, (name, size) in enumerate(sizes.items())}
    state["vector"] = random(5)
    stored: dict[str, Quantized | Tensor] = {
        n: quantize_rows(w, 4, export, n) for n, w in state.items() if w.ndim == 2
    }
    stored["vector"] = state["vector"]
    found = corrected(stored, state, None, export)
    assert {n for n, x in found.items() if isinstance(x, Quantized) and x.correction} == {"large", "mid"}
    for name in ("large", "mid"):
        before, after = stored[name], found[name]
        assert isinstance(before, Quantized) and isinstance(after, Quantized)
        assert torch.equal(before.values, after.values)
        assert (state[name] - dequantize(after)).norm() < (state[name] - dequantize(before)).norm()
    assert found["small"] is stored["small"] and found["vector"] is stored["vector"]


def test_weighted_it_makes_good_what_reaches_the_output() -> None:
    weight, inputs = random(40, 64), uneven_inputs(64)
    export = ExportConfig(lqer_rank=4, lqer_matrices=1)
    stored = {"w": quantize_rows(weight, 4, export)}
    moments = {"w": Moments(inputs, torch.ones(40))}

    def of_output(form: Quantized | Tensor) -> float:
        assert isinstance(form, Quantized)
        error = weight - dequantize(form)
        return float(((error @ inputs) * error).sum())

    plain = of_output(corrected(stored, {"w": weight}, None, export)["w"])
    weighted = of_output(corrected(stored, {"w": weight}, moments, export)["w"])
    assert weighted < 0.8 * plain < of_output(stored["w"])


def test_weights_choose_by_the_output_too() -> None:
    """The larger error is of a matrix that reads next to nothing."""
    export = ExportConfig(lqer_rank=1, lqer_matrices=1)
    state = {"loud": random(20, 30), "quiet": 2 * random(20, 30, seed=1)}
    stored = {name: quantize_rows(w, 4, export) for name, w in state.items()}
    moments = {
        "loud": Moments(torch.eye(30), torch.ones(20)),
        "quiet": Moments(1e-4 * torch.eye(30), torch.ones(20)),
    }
    for given, name in ((None, "quiet"), (moments, "loud")):
        found = corrected(stored, state, given, export)
        assert [n for n, x in found.items() if isinstance(x, Quantized) and x.correction] == [name]


@pytest.mark.parametrize("layout", ["bytes", "planes", "range"])
def test_the_file_holds_it_exactly(layout: str) -> None:
    export = ExportConfig(lqer_rank=3, lqer_matrices=1, layout=layout)  # type: ignore[arg-type]
    weight = random(20, 30)
    found = corrected({"w": quantize_rows(weight, 5, export)}, {"w": weight}, None, export)
    back = decode_section(*encode_section(found, export), export, weight.numel())
    form = found["w"]
    assert isinstance(form, Quantized) and form.correction is not None
    assert torch.equal(back["w"], dequantize(form))
    with pytest.raises(ValueError, match="w has a correction"):  # and is never left out without a word
        encode_section(found, ExportConfig(layout=layout))  # type: ignore[arg-type]
