"""Muon: momentum, orthogonalized, for the matrices inside the layers."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pargolf.system import distributed

# a, b, c of one iteration x <- (a + b gram + c gram^2) x
Coefficients = tuple[float, float, float]
NS_COEFFICIENTS: Coefficients = (3.4445, -4.7750, 2.0315)
# Each iteration takes the singular values left by those before it nearer to 1 than one set for all could.
# Source: Polar Express, arXiv 2505.16932; these of challenge thread 1344.
POLAR_COEFFICIENTS: tuple[Coefficients, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
COEFFICIENTS: dict[str, tuple[Coefficients, ...]] = {
    "newton-schulz": (NS_COEFFICIENTS,),
    "polar-express": POLAR_COEFFICIENTS,
}
# From this ratio of the sides on, iterating on Gram matrices takes less arithmetic.
GRAM_RATIO = 1.5
# Iterations on one Gram matrix: in bfloat16 its small eigenvalues are rounding, of any sign, and grow
# with each.
GRAM_STEPS = 2

# alpha a b^T + beta c of the arguments a, b, c, alpha, beta, where a b^T is symmetric
SymmetricProduct = Callable[[Tensor, Tensor, Tensor | None, float, float], Tensor]


def plain_product(a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float) -> Tensor:
    """alpha a b^T + beta c for a, b (n, rows, cols), c (n, rows, rows): one multiply, sum included."""
    return a @ b.mT if c is None else torch.baddbmm(c, a, b.mT, beta=beta, alpha=alpha)


def newton_schulz(
    matrices: Tensor,
    steps: int,
    dtype: torch.dtype = torch.bfloat16,
    product: SymmetricProduct = plain_product,
    coefficients: Sequence[Coefficients] = (NS_COEFFICIENTS,),
) -> Tensor:
    """Push the singular values of each matrix (..., rows, cols) towards 1; returns `dtype`.

    Each iteration takes the next of `coefficients`, or the last. With NS_COEFFICIENTS, tuned for speed,
    the values end between about 0.7 and 1.2.
    Source: Muon, Keller Jordan 2024; torch.optim.Muon uses the same coefficients.
    """
    x = matrices.to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:  # the Gram matrix is then the smaller of the two
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    batched = x.flatten(0, -3) if x.ndim > 2 else x[None]
    iterate = _iterate_by_gram if x.size(-1) >= GRAM_RATIO * x.size(-2) else _iterate
    iterations = [coefficients[min(step, len(coefficients) - 1)] for step in range(steps)]
    x = iterate(batched, iterations, product).view_as(x)
    return x.mT if tall else x


def _iterate(x: Tensor, iterations: Sequence[Coefficients], product: SymmetricProduct) -> Tensor:
    """x <- (a + b gram + c gram^2) x with gram = x x^T, for each a, b, c, for x (n, rows, cols)."""
    for a, b, c in iterations:  # the sums are done by the multiplies
        gram = product(x, x, None, 1.0, 0.0)
        x = torch.baddbmm(x, product(gram, gram, gram, c, b), x, beta=a)
    return x


def _iterate_by_gram(x: Tensor, iterations: Sequence[Coefficients], product: SymmetricProduct) -> Tensor:
    """The same for wide x: the polynomials are multiplied together first, and then x once.

    Each step then updates gram alone: gram <- polynomial gram polynomial. Now and then gram is computed
    from x again. Source: Gram Newton-Schulz, Zhang, Amsel, Chen and Dao 2026.
    """
    for start in range(0, len(iterations), GRAM_STEPS):
        gram = product(x, x, None, 1.0, 0.0)
        total = None
        part = iterations[start : start + GRAM_STEPS]
        for left, (a, b, c) in zip(range(len(part), 0, -1), part, strict=True):
            polynomial = product(gram, gram, gram, c, b)
            polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
            # These two commute up to rounding only: their product is not symmetric.
            total = polynomial if total is None else polynomial @ total
            if left > 1:
                gram = product(polynomial @ gram, polynomial, None, 1.0, 0.0)
        if total is not None:
            x = total @ x
    return x


class Muon(torch.optim.Optimizer):
    """w *= 1 - lr * weight_decay; w -= lr * sqrt(max(1, rows / cols)) * newton_schulz(g + m * buf).

    buf = m * buf + g (Nesterov momentum). With `row_norm` each row of g + m * buf is scaled to length 1 first
    (MuonEq-R, challenge thread 1217). Matrices (rows, cols) of one shape go through
    Newton-Schulz as one batch; with several ranks each orthogonalizes its share of the batch
    and the updates are exchanged. Every rank keeps all momentum, so that any rank can write a
    checkpoint; on one rank the exchange is skipped and the code is the same.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.99,
        weight_decay: float = 0.038,
        ns_steps: int = 5,
        ns_dtype: torch.dtype = torch.bfloat16,
        coefficients: Sequence[Coefficients] = (NS_COEFFICIENTS,),
        row_norm: bool = False,
    ):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.ns_steps, self.ns_dtype = ns_steps, ns_dtype
        self.coefficients, self.row_norm = coefficients, row_norm
        self.product = plain_product
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in self.param_groups[0]["params"]:
            by_shape[parameter.shape].append(parameter)
        self.batches = []
        for shape, members in by_shape.items():
            momenta = torch.zeros(len(members), *shape, dtype=torch.float32, device=members[0].device)
            self.batches.append((members, momenta))
            for parameter, buffer in zip(members, momenta, strict=True):
                self.state[parameter]["momentum_buffer"] = buffer  # a view: what is loaded lands in the batch

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients in place."""
        group = self.param_groups[0]
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        for members, momenta in self.batches:
            gradients = torch.stack([p.grad for p in members if p.grad is not None])  # (n, rows, cols)
            torch.add(gradients, momenta, alpha=momentum, out=momenta)
            nesterov = gradients.add_(momenta, alpha=momentum)
            update = distributed.shared_map(self._orthogonal, nesterov)
            rows, cols = members[0].shape
            scale = lr * max(1.0, rows / cols) ** 0.5
            # On a GPU one launch serves many matrices.
            torch._foreach_mul_(members, 1 - lr * decay)
            torch._foreach_add_(members, update.to(momenta.dtype).unbind(), alpha=-scale)

    def _orthogonal(self, share: Tensor) -> Tensor:
        """The updates of some matrices (n, rows, cols) of momentum."""
        if self.row_norm:
            share = share / share.norm(dim=-1, keepdim=True).clamp(min=1e-7)
        return newton_schulz(share, self.ns_steps, self.ns_dtype, self.product, self.coefficients)
