"""How long an update of Muon is: of each neuron, along its matrix, and beside its matrix.

All take updates u (n, rows, cols) of n matrices of one shape; the step is w - lr * u.
"""

from torch import Tensor

TINY = 1e-12


def length(x: Tensor) -> Tensor:
    """Frobenius norm of each matrix of x (n, rows, cols): (n, 1, 1)."""
    return x.norm(dim=(-2, -1), keepdim=True)


def neuron_normed(update: Tensor, squares: Tensor, beta2: float) -> Tensor:
    """Each row of u, or each column of wide u, over the root of its running mean square; |u| stays.

    `squares` (n, rows, 1), or (n, 1, cols), is that mean and takes in u: s <- beta2 s + (1 - beta2) mean u^2,
    from 0 on and without a correction, which |u| makes good. Source: NorMuon, arXiv 2510.05491.
    """
    wide = update.size(-1) > update.size(-2)
    squares.lerp_(update.square().mean(-2 if wide else -1, keepdim=True), 1 - beta2)
    normed = update * squares.clamp(min=1e-10).rsqrt()
    return normed * (length(update) / length(normed).clamp(min=TINY))
