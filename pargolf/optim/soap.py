"""SOAP before orthogonalization: momentum over its running size, in the eigenvectors of the gradients.

Source: SOAP, arXiv 2409.11321; before Newton-Schulz, as modded-nanogpt track 3 has it from entry 14 on. Its
statistics lag one step: a step's gradients are taken in after the weights have moved, so the first step is
plain Muon's. All tensors are of n matrices of one shape, stacked, and in float32.
"""

import torch
from torch import Tensor

# Least mean square that momentum is divided by the root of. 1e-16 there was for losses summed over half a
# million tokens; ours are means, whose squared gradients are 1e11 times smaller.
LEAST = 1e-30


def soap_shapes(rows: int, cols: int) -> dict[str, tuple[int, ...]]:
    """What is kept of a matrix: means of G G^T and G^T G, their eigenvectors as columns, and momentum's mean
    square along these."""
    return {
        "soap_left": (rows, rows),
        "soap_right": (cols, cols),
        "soap_left_basis": (rows, rows),
        "soap_right_basis": (cols, cols),
        "soap_squares": (rows, cols),
    }


def whitened(momenta: Tensor, state: dict[str, Tensor], beta2: float) -> Tensor:
    """`momenta` (n, rows, cols) along the eigenvectors, over its running root mean square, and turned back.

    The squares take `momenta` in. The scale is arbitrary: what orthogonalizes does not see it.
    """
    left, right = state["soap_left_basis"], state["soap_right_basis"]
    turned = left.mT @ momenta @ right
    squares = state["soap_squares"].lerp_(turned.square(), 1 - beta2)
    return left @ (turned * squares.clamp(min=LEAST).rsqrt()) @ right.mT


def take_in(gradients: Tensor, state: dict[str, Tensor], beta2: float, step: int, every: int) -> None:
    """Update the means from the gradients (n, rows, cols) of the step numbered `step`, from 0.

    The first step finds the eigenvectors; every so many later ones bring them closer to those of the means by
    an orthogonal iteration.
    """
    squares = state["soap_squares"]
    for side, gram in (("left", gradients @ gradients.mT), ("right", gradients.mT @ gradients)):
        mean, basis = state[f"soap_{side}"].lerp_(gram, 1 - beta2), state[f"soap_{side}_basis"]
        if step == 0:
            # A host waits for eigenvectors on a GPU, this once. What is no number is found by the loss.
            found = torch.linalg.eigh(mean.double().nan_to_num())
            basis.copy_(found.eigenvectors.flip(-1))  # the largest first
        elif step % every == 0:
            image = mean @ basis
            order = (basis * image).sum(-2).argsort(descending=True)  # (n, side), of Rayleigh quotients
            columns = order[:, None, :]
            basis.copy_(torch.linalg.qr(image.take_along_dim(columns, -1)).Q)
            if side == "left":
                squares.copy_(squares.take_along_dim(columns.mT, -2))
            else:
                squares.copy_(squares.take_along_dim(columns, -1))
