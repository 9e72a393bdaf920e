"""Weights to small integers and back: symmetric, one float16 scale per output channel (row)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pargolf.config.kinds import TENSOR_KINDS, Slot
from pargolf.config.schema import ExportConfig
from pargolf.system.errors import UserError

TINIEST_SCALE = 2.0**-24  # smallest positive float16
FLOAT32_DIGITS = 23  # bits behind the leading one
SMALL_MATRIX = 65_536  # values: of so many or fewer the challenge's baseline keeps floats
QUANTIZED_BITS = range(1, 9)
RIGHT_GROUP = 64
FLOATS = {16: torch.float16, 32: torch.float32}


@dataclass(frozen=True)
class Quantized:
    """A matrix as `values` int8 (rows, cols), each in -top..top, times `scale` float16 (rows,).

    `bits`, one of QUANTIZED_BITS, gives top (see `top_value`). With a correction, that is added.
    """

    values: Tensor
    scale: Tensor
    bits: int
    correction: "Correction | None" = None


@dataclass(frozen=True)
class Correction:
    """A low-rank matrix left @ right, of few bits, that makes good part of a rounding error (LQER).

    Source: arXiv 2402.02446; these grids are those of the challenge's thread 1797.
    """

    left: Tensor
    """(rows, rank) int8 in -2..1."""
    left_scale: Tensor
    """(1,) float16."""
    right: Tensor
    """(rank, cols) int8 in -8..7."""
    right_scale: Tensor
    """float16, one for every RIGHT_GROUP values of `right` in their order."""

    def matrix(self) -> Tensor:
        """The float32 (rows, cols) that it stands for."""
        of_values = self.right_scale.float().repeat_interleave(RIGHT_GROUP)[: self.right.numel()]
        return (self.left.float() * self.left_scale.float()) @ (
            self.right.float() * of_values.view_as(self.right)
        )


def top_value(bits: int) -> int:
    """Largest quantized magnitude: 31 for 6 bits. The range is symmetric, so one code stays unused.

    1 for 2 bits, ternary, and for 1, whose values are -1 and 1.
    """
    return max(1, 2 ** (bits - 1) - 1)


def plain_bits(kind: str, values: int, export: ExportConfig) -> int:
    """Bits a value of a tensor of so many values, without a goal: 1-8 integers, 16 or 32 floats."""
    bits: int = getattr(export, TENSOR_KINDS[kind].bits)
    if export.quantizer == "challenge" and values <= SMALL_MATRIX:
        return max(bits, 16)
    return bits


def most_bits(kind: str, values: int, export: ExportConfig) -> int:
    """The most bits a value of such a tensor can take: those of `plain_bits` unless training text decides."""
    if export.model_bytes or export.max_loss:
        return 8 if TENSOR_KINDS[kind].role == "product" else 16
    return plain_bits(kind, values, export)


def sigmas_of(kind: str, export: ExportConfig) -> float:
    """Standard deviations of a row that its largest integer stands for; 0 where its clip decides."""
    field = TENSOR_KINDS[kind].sigmas
    return getattr(export, field) if field else 0.0


def quantize_rows(
    weight: Tensor, bits: int, export: ExportConfig, name: str = "weight", sigmas: float = 0.0
) -> Quantized:
    """weight float32 (rows, cols) -> 1- to 8-bit integers with one scale a row.

    Each row is clipped at `export.clip_quantile` of its absolute values (interpolated linearly), or with
    `sigmas` at so many of its standard deviations (SDClip, challenge thread 1394); elements within the clip
    are at most scale / 2 off. Of 2 bits the scale is the mean of the absolute
    values and a value the nearest of -1, 0 and 1 (challenge record of March 24 2026, which has a scale for
    every 128 values), of 1 bit its sign. Raises UserError, naming the tensor, on
    NaN, infinity or a row too large for a float16 scale; ValueError if it is no matrix.
    """
    if weight.ndim != 2 or weight.numel() == 0 or bits not in QUANTIZED_BITS:
        raise ValueError(f"cannot quantize {name} of shape {tuple(weight.shape)} to {bits} bits a value")
    weight = weight.detach().float()
    _require_finite(weight, name)
    q = _quantize(weight, bits, export, sigmas)
    _require_scales(q.scale, name)
    return q


def round_rows(weight: Tensor, bits: int, export: ExportConfig, sigmas: float = 0.0) -> Tensor:
    """The float32 matrix that `quantize_rows`'s integers mean, unchecked: a check makes a GPU's host wait."""
    return dequantize(_quantize(weight.detach(), bits, export, sigmas))


def _quantize(weight: Tensor, bits: int, export: ExportConfig, sigmas: float) -> Quantized:
    if bits <= 2:
        scale = _scale(weight.abs().mean(dim=1), export)
        nearest = (weight / scale.float()[:, None]).round().clamp(-1, 1)
        signs = torch.where(weight < 0, -1, 1)
        return Quantized((nearest if bits == 2 else signs).to(torch.int8), scale, bits)
    top = top_value(bits)
    if sigmas:
        # Not torch.std: of a row of one value it is NaN.
        clip = (
            sigmas * (weight.var(dim=1, correction=0) * (weight.size(1) / max(1, weight.size(1) - 1))).sqrt()
        )
    else:
        clip = _row_quantile(weight.abs(), export.clip_quantile)
    if export.quantizer == "challenge":
        wanted = clip.clamp_min(1) / top
        clipped = weight.clamp(-clip[:, None], clip[:, None])
        return Quantized((clipped / wanted[:, None]).round().to(torch.int8), wanted.half(), bits)
    scale = _scale(clip / top, export)
    values = (weight / scale.float()[:, None]).round().clamp(-top, top).to(torch.int8)
    return Quantized(values, scale, bits)


def of_digits(scale: Tensor, digits: int) -> Tensor:
    """float32, positive or 0: each the nearest of so many bits behind its leading one."""
    rest = FLOAT32_DIGITS - digits
    # As integers, floats have their order, and a carry out of their digits goes to the exponent.
    raised = scale.view(torch.int32) + (1 << (rest - 1))
    return (raised & -(1 << rest)).view(torch.float32)


def stored_scale(scale: Tensor, name: str) -> Tensor:
    """Wanted scales (rows,) as the file stores them, float16; UserError, naming the tensor, if too large.

    A row of zeros (or nearly) takes the smallest scale there is instead of one that divides by zero.
    """
    stored = _float16(scale)
    _require_scales(stored, name)
    return stored


def dequantize(q: Quantized) -> Tensor:
    """The float32 (rows, cols) matrix that integers, scales and correction stand for."""
    rounded = q.values.float() * q.scale.float()[:, None]
    return rounded if q.correction is None else rounded + q.correction.matrix()


def quantize_state(
    state: Mapping[str, Tensor], slots: Mapping[str, Slot], export: ExportConfig
) -> dict[str, Quantized | Tensor]:
    """Every tensor in the form in which it is stored, by its bits (see `plain_bits`).

    Kinds of 16 or 32 bits become float16 or float32 tensors of the same shape. Raises
    ValueError unless `state` and `slots` have the same names; UserError as `quantize_rows`.
    """
    if state.keys() != slots.keys():
        raise ValueError(f"tensors and slots differ: {sorted(state.keys() ^ slots.keys())}")
    stored: dict[str, Quantized | Tensor] = {}
    for name, tensor in state.items():
        bits = plain_bits(slots[name].kind, tensor.numel(), export)
        if bits in FLOATS:
            stored[name] = to_floats(tensor, bits, name)
        else:
            stored[name] = quantize_rows(tensor, bits, export, name, sigmas_of(slots[name].kind, export))
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
    """Quantile of each row of (rows, cols) float32: torch.quantile's, bit by bit.

    torch.quantile itself refuses more than 16 million elements. topk is enough and quicker than
    sorting, as clips are high quantiles.
    """
    cols = rows.size(1)
    position = float(torch.tensor(quantile, dtype=torch.float32) * (cols - 1))  # as rough as torch.quantile's
    below = int(position)
    largest = rows.topk(cols - below, dim=1).values  # descending; the last is the one at `below`
    return torch.lerp(largest[:, -1], largest[:, -2:][:, 0], position - below)


def _require_finite(tensor: Tensor, name: str) -> None:
    if not tensor.isfinite().all():
        raise UserError(f"{name} holds NaN or infinite values; the training run has diverged")


def _scale(scale: Tensor, export: ExportConfig) -> Tensor:
    if export.scale_bits < 10:  # float16's own
        scale = of_digits(scale, export.scale_bits)
    return _float16(scale)


def _float16(scale: Tensor) -> Tensor:
    return scale.clamp_min(TINIEST_SCALE).half()


def _require_scales(scale: Tensor, name: str) -> None:
    if not scale.isfinite().all():
        raise UserError(f"{name} has a row too large to quantize: its scale exceeds float16's 65504")
