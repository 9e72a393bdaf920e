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


def braked(update: Tensor, weights: Tensor, brake: float) -> Tensor:
    """u without this share of its part along w, in matrices that this part makes longer.

    Source: modded-nanogpt track 3, entry 29, with half of it.
    """
    along = (update * weights).sum((-2, -1), keepdim=True) / length(weights).square().clamp(min=TINY)
    return update - brake * along.clamp(max=0) * weights


def floored(update: Tensor, weights: Tensor, floor: float, by_rows: bool) -> Tensor:
    """u, made longer where it is shorter than `floor` times w: as a whole, or row by row.

    Source: modded-nanogpt track 3, entries 9 (floor 0.35) and 46 (rows).
    """
    dims = (-1,) if by_rows else (-2, -1)
    least = floor * weights.norm(dim=dims, keepdim=True)
    return update * (least / update.norm(dim=dims, keepdim=True).clamp(min=TINY)).clamp(min=1.0)


def pinned(moved: Tensor, weights: Tensor, step: Tensor) -> Tensor:
    """`moved` = w - step, as long as w and the part of the step along w are: |w| - <step, w> / |w|.

    Steps that turn a matrix then make it no longer. Without a length, as at zero, it stays as it is. Source:
    modded-nanogpt track 3, entry 29.
    """
    before = length(weights)
    wanted = before - (step * weights).sum((-2, -1), keepdim=True) / before.clamp(min=TINY)
    return moved * (wanted / length(moved).clamp(min=TINY)).where(wanted > 0, 1.0)


def shrinking(update: Tensor, weights: Tensor) -> Tensor:
    """True for each value that the step brings nearer to zero: those that cautious weight decay decays.

    Source: arXiv 2510.12402.
    """
    return update * weights > 0
