"""Corrections of low rank for the matrices that rounding harms most (LQER, arXiv 2402.02446).

The challenge's last records correct three matrices by rank 4, chosen and fitted by the error itself
(threads 1797, 1851). Weighted, both go by what the error does to the matrix's output on training text.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pargolf.config.schema import ExportConfig
from pargolf.export.quantize import RIGHT_GROUP, Correction, Quantized, dequantize, stored_scale
from pargolf.fit.gptq import Moments, inverse_factor

LEFT, RIGHT = (-2, 1), (-8, 7)  # least and largest integer
# What a group's largest value may be over its step. Those of the records, and more to choose from: a coarse
# grid that reaches the largest value rounds most others to zero.
LEFT_STEPS: Sequence[float] = (1.5,)
RIGHT_STEPS: Sequence[float] = (7.5,)
MORE_LEFT_STEPS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)
MORE_RIGHT_STEPS = (7.5, 9.0, 11.0)


def corrected(
    stored: Mapping[str, Quantized | Tensor],
    state: Mapping[str, Tensor],
    moments: Mapping[str, Moments] | None,
    export: ExportConfig,
) -> dict[str, Quantized | Tensor]:
    """`stored`, the `export.lqer_matrices` of largest error with a correction each.

    With `moments` those are chosen whose error costs the loss most (see `gptq`), and corrected by what it
    does to their outputs.
    """
    errors = {
        name: state[name].float() - dequantize(form)
        for name, form in stored.items()
        if isinstance(form, Quantized) and min(form.values.shape) > export.lqer_rank
    }
    roots: dict[str, Tensor] = {}
    sizes = {name: float(error.norm()) for name, error in errors.items()}
    if moments is not None:
        roots = {name: _root(moments[name].inputs) for name in errors.keys() & moments.keys()}
        for name, root in roots.items():  # what it costs the loss
            sizes[name] = float((moments[name].outputs.sqrt()[:, None] * (errors[name] @ root)).norm())
    chosen = sorted(errors, key=lambda name: (-sizes[name], name))[: export.lqer_matrices]
    found = dict(stored)
    for name in chosen:
        form = stored[name]
        assert isinstance(form, Quantized)
        correction = factored(errors[name], export.lqer_rank, roots.get(name))
        found[name] = dataclasses.replace(form, correction=correction)
    return found


def factored(error: Tensor, rank: int, root: Tensor | None = None) -> Correction:
    """The nearest to `error` (rows, cols) at `rank`, as it is or times `root` (cols, cols), then rounded.

    Without a root the singular values go to the left factor, as in the records; its one step then suits the
    first of them alone. With one they go to the right factor, which has a step for every 64 values.
    """
    u, s, vt = torch.linalg.svd(error if root is None else error @ root, full_matrices=False)
    left, right = u[:, :rank], vt[:rank]
    if root is None:
        left, left_steps, right_steps = left * s[:rank], LEFT_STEPS, RIGHT_STEPS
    else:
        right = torch.linalg.solve_triangular(root, s[:rank, None] * right, upper=True, left=False)
        left_steps, right_steps = MORE_LEFT_STEPS, MORE_RIGHT_STEPS
    spare = -right.numel() % RIGHT_GROUP
    groups = F.pad(right.flatten(), (0, spare)).view(-1, RIGHT_GROUP)
    left_values, left_scale = _rounded(left.reshape(1, -1), LEFT, left_steps)
    right_values, right_scale = _rounded(groups, RIGHT, right_steps)
    right_values = right_values.flatten()[: right.numel()].view_as(right)
    return Correction(left_values.view_as(left), left_scale, right_values, right_scale)


def _rounded(groups: Tensor, ends: tuple[int, int], steps: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(n, size) float32 -> integers int8 (n, size) and scales float16 (n,), each the best of `steps`."""
    found = []
    for step in steps:
        scale = stored_scale(groups.abs().amax(dim=1) / step, "correction")
        values = (groups / scale.float()[:, None]).round().clamp(*ends)
        error = (groups - values * scale.float()[:, None]).square().sum(dim=1)
        found.append((error, scale, values.to(torch.int8)))
    best = torch.stack([error for error, _, _ in found]).argmin(dim=0)
    rows = torch.arange(len(groups))
    scales, values = (torch.stack([x[k] for x in found])[best, rows] for k in (1, 2))
    return values, scales


def _root(inputs: Tensor) -> Tensor:
    """An upper triangular R with R R^T = the damped second moments of a matrix's inputs."""
    # inverse_factor is U with U^T U = H^-1, so H = U^-1 U^-T.
    factor = inverse_factor(inputs)
    return torch.linalg.solve_triangular(factor, torch.eye(len(factor)), upper=True)
