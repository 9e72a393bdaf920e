"""Weights to small integers and back: symmetric, one float16 scale per output channel (row)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pargolf.config.kinds import TENSOR_KINDS, Slot
from pargolf.config.schema import ExportConfig
from pargolf.system.errors import UserError

TINIEST_SCALE = 2.0**-24  # smallest positive float16
QUANTIZED_BITS = range(2, 9)
FLOATS = {16: torch.float16, 32: torch.float32}


@dataclass(frozen=True)
class Quantized:
    """A matrix as `values` int8 (rows, cols), each in -top..top, times `scale` float16 (rows,).

    `bits`, one of QUANTIZED_BITS, gives top (see `top_value`).
    """

    values: Tensor
    scale: Tensor
    bits: int


def top_value(bits: int) -> int:
    """Largest quantized magnitude: 31 for 6 bits. The range is symmetric, so one code stays unused."""
    return 2 ** (bits - 1) - 1


def kind_bits(kind: str, export: ExportConfig) -> int:
    """Bits a value of tensors of this kind: 4-8 integers, 16 or 32 floats; fitted: the most."""
    if export.model_bytes or export.max_loss:
        return 16 if TENSOR_KINDS[kind].role == "vector" else 8
    bits: int = getattr(export, TENSOR_KINDS[kind].bits)
    return bits


def quantize_rows(weight: Tensor, bits: int, clip_quantile: float, name: str = "weight") -> Quantized:
    """weight float32 (rows, cols) -> 2- to 8-bit integers with one scale a row.

    Each row is clipped at `clip_quantile` of its absolute values (interpolated linearly);
    elements within the clip are at most scale / 2 off. Raises UserError, naming the tensor, on
    NaN, infinity or a row too large for a float16 scale; ValueError if it is no matrix.
    """
    if weight.ndim != 2 or weight.numel() == 0 or bits not in QUANTIZED_BITS:
        raise ValueError(f"cannot quantize {name} of shape {tuple(weight.shape)} to {bits} bits a value")
    weight = weight.detach().float()
    _require_finite(weight, name)
    q = _quantize(weight, bits, clip_quantile)
    _require_scales(q.scale, name)
    return q


def round_rows(weight: Tensor, bits: int, clip_quantile: float) -> Tensor:
    """The float32 matrix that `quantize_rows`'s integers mean, unchecked: a check makes a GPU's host wait."""
    return dequantize(_quantize(weight.detach(), bits, clip_quantile))


def _quantize(weight: Tensor, bits: int, clip_quantile: float) -> Quantized:
    top = top_value(bits)
    scale = _float16(_row_quantile(weight.abs(), clip_quantile) / top)
    values = (weight / scale.float()[:, None]).round().clamp(-top, top).to(torch.int8)
    return Quantized(values, scale, bits)


def stored_scale(scale: Tensor, name: str) -> Tensor:
    """Wanted scales (rows,) as the file stores them, float16; UserError, naming the tensor, if too large.

    A row of zeros (or nearly) takes the smallest scale there is instead of one that divides by zero.
    """
    stored = _float16(scale)
    _require_scales(stored, name)
    return stored


def dequantize(q: Quantized) -> Tensor:
    """The float32 (rows, cols) matrix that the integers and scales stand for."""
    return q.values.float() * q.scale.float()[:, None]


def quantize_state(
    state: Mapping[str, Tensor], slots: Mapping[str, Slot], export: ExportConfig
) -> dict[str, Quantized | Tensor]:
    """Every tensor in the form in which it is stored, by the bits of its kind.

    Kinds of 16 or 32 bits become float16 or float32 tensors of the same shape. Raises
    ValueError unless `state` and `slots` have the same names; UserError as `quantize_rows`.
    """
    if state.keys() != slots.keys():
        raise ValueError(f"tensors and slots differ: {sorted(state.keys() ^ slots.keys())}")
    stored: dict[str, Quantized | Tensor] = {}
    for name, tensor in state.items():
        bits = kind_bits(slots[name].kind, export)
        if bits in FLOATS:
            stored[name] = to_floats(tensor, bits, name)
        else:
            stored[name] = quantize_rows(tensor, bits, export.clip_quantile, name)
    return stored


def to_floats(tensor: Tensor, bits: int, name: str) -> Tensor:
    """`tensor` in 16 or 32 bits a value; UserError, naming it, where that overflows."""
    floats = tensor.detach().to(FLOATS[bits])
    _require_finite(floats, f"{name} as float{bits}")
    return floats


def dequantize_state(stored: Mapping[str, Quantized | Tensor]) -> dict[str, Tensor]:
    """The float32 tensors that a stored state stands for, shapes as they were."""
    return {name: dequantize(x) if isinstance(x, Quantized) else x.float() for name, x in stored.items()}


def _row_quantile(rows: Tensor, quantile: float) -> Tensor:
    """Quantile of each row of (rows, cols), as torch.quantile with linear interpolation.

    torch.quantile itself refuses more than 16 million elements. topk is enough and quicker than
    sorting, as clips are high quantiles.
    """
    cols = rows.size(1)
    position = quantile * (cols - 1)
    below = min(int(position), cols - 1)
    largest = rows.topk(cols - below, dim=1).values  # descending; the last is the one at `below`
    return torch.lerp(largest[:, -1], largest[:, -2:][:, 0], position - below)


def _require_finite(tensor: Tensor, name: str) -> None:
    if not tensor.isfinite().all():
        raise UserError(f"{name} holds NaN or infinite values; the training run has diverged")


def _float16(scale: Tensor) -> Tensor:
    return scale.clamp_min(TINIEST_SCALE).half()


def _require_scales(scale: Tensor, name: str) -> None:
    if not scale.isfinite().all():
        raise UserError(f"{name} has a row too large to quantize: its scale exceeds float16's 65504")
