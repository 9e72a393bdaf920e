"""EMA-Nesterov: gradients are taken further along the way that the weights have gone of late."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pargolf.config.schema import OptimConfig


class Ahead:
    """All weights go on by a multiple of D, the running mean of their steps, before each gradient.

    D <- decay D + (1 - decay)(w after the step - w before it), from 0 on. The optimizers then step from where
    the gradient was taken: the shift is part of the step, and of D. Source: EMA-Nesterov, modded-nanogpt
    track 3, entry 39 (strength 0.6, decay 0.99; 0.3 beside other options in entry 40).
    """

    def __init__(self, model: nn.Module, o: OptimConfig):
        self.o = o
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.drifts = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}

    @contextmanager
    def shifted(self, strength: float) -> Iterator[None]:
        """The block takes gradient and step, from weights that have gone on by `strength` D.

        Before and after it the weights are those of whole steps: these are what is scored and saved.
        """
        weights, drifts = list(self.parameters.values()), list(self.drifts.values())
        before = [p.detach().clone() for p in weights]
        with torch.no_grad():
            if strength:
                torch._foreach_add_(weights, drifts, alpha=strength)
        yield
        with torch.no_grad():
            steps = torch._foreach_sub(weights, before)
            torch._foreach_lerp_(drifts, steps, 1 - self.o.ema_nesterov_decay)

    def state(self) -> dict[str, Tensor]:
        """Named tensors for a checkpoint, these themselves: what is copied into them is put back."""
        return {f"drift/{name}": drift for name, drift in self.drifts.items()}
