"""Muon: momentum, orthogonalized, for the matrices inside the layers."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pargolf.config.schema import OptimConfig
from pargolf.optim.norms import braked, floored, neuron_normed, pinned, shrinking
from pargolf.optim.soap import soap_shapes, take_in, whitened
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


@dataclass
class Batch:
    """Matrices (rows, cols) of one shape, and Muon's state of all n of them, stacked: (n, ...), float32."""

    members: list[Tensor]
    state: dict[str, Tensor]
    soap: bool
    """Whether these are whitened."""

    def own_state(self) -> dict[str, Tensor]:
        """Views of the state of this rank's share."""
        mine = distributed.own_share(len(self.members))
        return {name: stack[mine] for name, stack in self.state.items()}


class Muon(torch.optim.Optimizer):
    """w *= 1 - lr * weight_decay; w -= lr * sqrt(max(1, rows / cols)) * newton_schulz(g + m * buf).

    buf = m * buf + g (Nesterov momentum). Matrices (rows, cols) of one shape go through
    Newton-Schulz as one batch; with several ranks each orthogonalizes its share of the batch
    and the updates are exchanged. Every rank keeps all momentum, so that any rank can write a
    checkpoint; on one rank the exchange is skipped and the code is the same.

    Options change g + m * buf: `soap` whitens that of the matrices `soaped` (soap.py), and `muon_row_norm`
    scales each of its rows to length 1 (MuonEq-R, challenge thread 1217). Others change what is orthogonal:
    `muon_neuron_norm`, and then those of `_move` (norms.py). Only the rank that orthogonalizes a matrix
    follows what `soap` keeps of it; `share_state` brings that to all.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        o: OptimConfig,
        ns_dtype: torch.dtype = torch.bfloat16,
        soaped: Sequence[Tensor] = (),
    ):
        settings = {"lr": o.muon_lr, "momentum": o.muon_momentum, "weight_decay": o.muon_weight_decay}
        super().__init__(params, settings)
        self.o, self.ns_dtype = o, ns_dtype
        self.product = plain_product
        self.steps = torch.zeros(())
        chosen = {id(p) for p in soaped}
        alike: dict[tuple[torch.Size, bool], list[Tensor]] = defaultdict(list)
        for parameter in self.param_groups[0]["params"]:
            alike[parameter.shape, id(parameter) in chosen].append(parameter)
        self.batches = [self._batch(members, soap) for (_, soap), members in alike.items()]

    def _batch(self, members: list[Tensor], soap: bool) -> Batch:
        """What is kept of these, all zero; `state` has views of it, so what is loaded lands in the batch."""
        rows, cols = members[0].shape
        shapes: dict[str, tuple[int, ...]] = {"momentum_buffer": (rows, cols)}
        if self.o.muon_neuron_norm:
            shapes["neuron_squares"] = (rows, 1) if rows >= cols else (1, cols)
        if self.o.soap != "off" and soap:
            shapes |= soap_shapes(rows, cols)
        device = members[0].device
        state = {
            name: torch.zeros(len(members), *shape, dtype=torch.float32, device=device)
            for name, shape in shapes.items()
        }
        for index, parameter in enumerate(members):
            self.state[parameter] = {name: stack[index] for name, stack in state.items()}
        return Batch(members, state, soap)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients in place."""
        group = self.param_groups[0]
        for batch in self.batches:
            momenta = batch.state["momentum_buffer"]
            gradients = torch.stack([p.grad for p in batch.members if p.grad is not None])  # (n, rows, cols)
            torch.add(gradients, momenta, alpha=group["momentum"], out=momenta)
            nesterov = gradients.add_(momenta, alpha=group["momentum"])
            if self.o.soap != "off" and batch.soap and self.steps:  # in place, what this rank orthogonalizes
                own = nesterov[distributed.own_share(len(nesterov))]
                own.copy_(whitened(own, batch.own_state(), self.o.soap_beta2))
            update = distributed.shared_map(self._orthogonal, nesterov)
            # A GPU takes all in one launch; on a CPU what lies between stays in the cache, one by one.
            size = 1 if update.is_cpu else len(update)
            for start in range(0, len(update), size):
                some = slice(start, start + size)
                part = update[some].to(momenta.dtype)
                if self.o.muon_neuron_norm:
                    squares = batch.state["neuron_squares"][some]
                    part = neuron_normed(part, squares, self.o.muon_neuron_beta2)
                self._move(batch.members[some], part, group["lr"], group["weight_decay"])
            if self.o.soap != "off" and batch.soap:
                self._learn(batch)
        if self.o.soap != "off":
            self.steps += 1

    def _learn(self, batch: Batch) -> None:
        """Take the gradients of this rank's share into the means that whiten its momentum from now on."""
        own = batch.members[distributed.own_share(len(batch.members))]
        if own:
            gradients = torch.stack([p.grad for p in own if p.grad is not None])
            take_in(gradients, batch.own_state(), self.o.soap_beta2, int(self.steps), self.o.soap_every)

    def _orthogonal(self, share: Tensor) -> Tensor:
        """The updates of some matrices (n, rows, cols) of momentum."""
        if self.o.muon_row_norm:
            share = share / share.norm(dim=-1, keepdim=True).clamp(min=1e-7)
        coefficients = COEFFICIENTS[self.o.orthogonalize]
        return newton_schulz(share, self.o.ns_steps, self.ns_dtype, self.product, coefficients)

    def _move(self, members: list[Tensor], update: Tensor, lr: float, decay: float) -> None:
        """Decay the matrices and take the step, given their updates (n, rows, cols).

        Options come in the order of modded-nanogpt track 3, entry 46.
        """
        o = self.o
        rows, cols = members[0].shape
        aspect = max(1.0, rows / cols) ** 0.5
        if not o.muon_cautious_decay:
            torch._foreach_mul_(members, 1 - lr * decay)
        if o.outward_brake or o.update_floor or o.radius_pin or o.muon_cautious_decay:
            weights = torch.stack(members)
            if o.outward_brake:
                update = braked(update, weights, o.outward_brake)
            if o.update_floor:
                update = floored(update, weights, o.update_floor / aspect, o.update_floor_rows)
            moved = weights - lr * aspect * update
            if o.radius_pin:
                moved = pinned(moved, weights, lr * aspect * update)
            if o.muon_cautious_decay:
                moved *= 1 - lr * decay * shrinking(update, weights)
            torch._foreach_copy_(members, moved.unbind())
        else:
            torch._foreach_add_(members, update.unbind(), alpha=-lr * aspect)

    def share_state(self) -> None:
        """Bring to every rank what each one has kept of its own share alone; all ranks call this."""
        if self.o.soap != "off":
            for batch in self.batches:
                for stack in batch.state.values():
                    stack.copy_(distributed.shared_map(lambda share: share, stack))
