"""Weights to integers with regard to what the errors do to the loss.

A matrix y = W x that is off by E raises the loss of a token, to second order, by about

    cost = 1/2 sum_r outputs[r] E_r H E_r^T      nats,

H the mean of x x^T and outputs[r] the mean square of the loss's gradient with respect to y_r
(K-FAC, Martens and Grosse, arXiv 1503.05671). H decides how to round, column by column, each
error made good in the columns still to come (GPTQ, Frantar et al., arXiv 2210.17323); `outputs`
decides how finely to round each row.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pargolf.export.quantize import Quantized, of_digits, stored_scale, top_value

DAMPING = 0.05  # of H's mean diagonal, added to the diagonal
SMOOTHING = 0.1  # of the mean of `outputs`, added to each: a rare token's row is not worthless
ALL_ZERO = 1024  # finest steps; twice a row's largest value is 254 of them
BLOCK = 64  # columns whose errors reach the columns after them in one product


@dataclass(frozen=True)
class Moments:
    """What the inputs and outputs of a matrix (rows, cols) were on calibration text."""

    inputs: Tensor
    """(cols, cols) float32: mean over tokens of x x^T."""
    outputs: Tensor
    """(rows,) float32: mean over tokens of (d loss / d y_r)^2, in nats squared."""


@dataclass(frozen=True)
class PreparedMatrix:
    """A matrix ready to be rounded at any price; what does not depend on the price is done once."""

    weight: Tensor
    """(rows, cols) float32, columns in `order`; those of inputs that were always zero are zero."""
    order: Tensor
    """(cols,): columns by the mean squares of their inputs, largest first; the last cannot be mended."""
    factor: Tensor
    """(cols, cols): `inverse_factor` of the inputs in `order`."""
    unit_step: Tensor
    """(rows,): the step of each row at a price of 1 nat a bit."""
    finest: Tensor
    """(rows,): the least step of each row, at which its largest value takes 8 bits."""


def prepare(weight: Tensor, moments: Moments) -> PreparedMatrix:
    """The steps at which a bit saves equally much cost, in all rows of all matrices.

    Rounding a row of n values at a step s costs outputs / 24 * s^2 * sum_i d_i, with d_i the
    squared diagonal of the Cholesky factor that GPTQ rounds by, and takes n log2(1 / s) bits more
    than at step 1. The slopes are equal to the price where s^2 = 12 price / (ln 2 outputs mean(d)).
    """
    squares = moments.inputs.diagonal()
    order = squares.argsort(descending=True, stable=True)
    factor = inverse_factor(moments.inputs[order][:, order])
    outputs = moments.outputs + SMOOTHING * moments.outputs.mean()
    stiffness = outputs * factor.diagonal().pow(-2).mean()
    unit_step = (12 / (math.log(2) * stiffness.clamp_min(torch.finfo(torch.float32).tiny))).sqrt()
    ordered = (weight.float() * (squares > 0))[:, order]
    return PreparedMatrix(ordered, order, factor, unit_step, ordered.abs().amax(dim=1) / top_value(8))


def inverse_factor(inputs: Tensor) -> Tensor:
    """The upper triangular U (cols, cols) float32 with U^T U = inverse of the damped `inputs`."""
    damped = inputs.double()
    damped.diagonal().add_(DAMPING * damped.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def quantize_at(prepared: PreparedMatrix, price: float, name: str = "weight") -> Quantized:
    """Rounded with the steps of `price` in nats a bit, in as few bits as its values need, 2 to 8.

    No value is clipped: a row whose largest would not fit 8 bits has a larger step. Price 0 is the
    finest that there is. Raises UserError, naming the tensor, on a row too large for a float16 scale.
    """
    finest = prepared.finest
    step = torch.minimum(math.sqrt(price) * prepared.unit_step, ALL_ZERO * finest)
    digits = scale_digits(prepared.weight.size(1))
    scale = stored_scale(torch.maximum(of_digits(step, digits), finest), name)
    values = round_at(prepared, scale, top_value(8))
    bits = max(2, int(values.abs().max()).bit_length() + 1)
    return Quantized(values, scale, bits)


def scale_digits(cols: int) -> int:
    """Bits behind the leading one that the scale of a row of `cols` values is worth, at any price.

    A step off by a share d of the best one costs cols d^2 / ln 2 bits, cost and bits of the values together.
    With k bits, d^2 is 0.045 / 4^k in the mean over steps of every size. One more bit saves three quarters
    of that, and has to save more than itself.
    """
    digits = 0
    while 0.75 * 0.045 * cols > math.log(2) * 4**digits:
        digits += 1
    return digits


def with_second_order(plain: Quantized, weight: Tensor, moments: Moments) -> Quantized:
    """`weight` at the bits and scales of its plain rounding, errors made good in the columns to come.

    Signs alone, of 1 bit, stay as they are.
    """
    if plain.bits == 1:
        return plain
    prepared = prepare(weight, moments)
    return replace(plain, values=round_at(prepared, plain.scale, top_value(plain.bits)))


def round_at(prepared: PreparedMatrix, scale: Tensor, top: int) -> Tensor:
    """Integers (rows, cols) int8 in -top..top, the columns as they were, at stored scales (rows,)."""
    values = round_second_order(prepared.weight, scale.float(), prepared.factor, top)
    return values[:, prepared.order.argsort()]


def round_second_order(weight: Tensor, scale: Tensor, factor: Tensor, top: int) -> Tensor:
    """Integers (rows, cols) int8 in -top..top; `scale` (rows,) times them stands for `weight`.

    `factor` is the `inverse_factor` of the inputs. An error in column i moves the columns j > i by
    -error * factor[i, j] / factor[i, i], the change of theirs that costs least after it.
    """
    left = weight.clone()
    values = torch.empty_like(weight, dtype=torch.int8)
    for start in range(0, weight.size(1), BLOCK):
        block = slice(start, start + BLOCK)
        errors = torch.empty_like(left[:, block])
        for i in range(errors.size(1)):
            column = left[:, start + i]
            rounded = (column / scale).round().clamp(-top, top)
            values[:, start + i] = rounded.to(torch.int8)
            row = factor[start + i, block][i:]
            errors[:, i] = (column - rounded * scale) / row[0]
            left[:, block][:, i:] -= torch.outer(errors[:, i], row)
        left[:, start + BLOCK :] -= errors @ factor[block, start + BLOCK :]
    return values
