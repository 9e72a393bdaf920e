"""The mean of a model's weights over its training: what is packed and scored in their place."""

import torch
from torch import Tensor

from pargolf.config.schema import TrainConfig
from pargolf.model.gpt import GPT


class Average:
    """A mean in float32 of weights after each step (EMA), or after some (SWA, arXiv 1803.05407).

    EMA: m <- decay m + (1 - decay) w from the initial weights on, without a correction for them, as challenge
    records from March 20 2026 on. SWA: the plain mean of every `swa_every`-th step's weights, from where the
    learning rates are below `swa_below` of their peak. Tail EMA: m <- m + (w - m) / `tail_ema_steps` from the
    weights w on where the learning rates fall below `tail_ema_below`, and of the two the run ends with
    (1 - tail_ema) w + tail_ema m. Source: modded-nanogpt track 3, entry 45, which left token embeddings out
    and took the head in; the two are one here, and it is in.
    """

    def __init__(self, model: GPT, t: TrainConfig):
        self.t = t
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.steps, self.taken = torch.zeros(()), torch.zeros(())
        self.hidden: dict[str, Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Start from the model's weights of now."""
        self.means = {name: p.detach().clone().float() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, lr_scale: float) -> None:
        """Take in the weights of now, after a step with this factor on the learning rates."""
        self.steps += 1
        weights, means = list(self.parameters.values()), list(self.means.values())
        if self.t.ema_decay:
            torch._foreach_lerp_(means, weights, 1 - self.t.ema_decay)
        elif self.t.tail_ema and lr_scale >= self.t.tail_ema_below:
            self.taken.zero_()  # a run that was finished and goes on begins a tail anew
        elif self.t.tail_ema:
            self.taken += 1
            torch._foreach_lerp_(means, weights, 1 / self.t.tail_ema_steps if self.taken > 1 else 1.0)
        elif lr_scale < self.t.swa_below and int(self.steps) % self.t.swa_every == 0:
            self.taken += 1
            torch._foreach_lerp_(means, weights, 1 / float(self.taken))

    @torch.no_grad()
    def show(self) -> None:
        """Put the mean into the model, and the model's weights where the mean was, for a checkpoint.

        A mean that has taken nothing yet leaves the model as it is.
        """
        if not self.t.ema_decay and not self.taken:
            return
        for name, parameter in self.parameters.items():
            mean, weights = self.means[name], parameter.detach().clone()
            parameter.copy_(torch.lerp(weights, mean, self.t.tail_ema) if self.t.tail_ema else mean)
            if self.t.tail_ema:
                self.hidden[name] = mean.clone()
            mean.copy_(weights)

    @torch.no_grad()
    def hide(self) -> None:
        """Put the model's weights back, and the mean, after `show`.

        In a run that was finished before, the mean of a tail is lost, and what was shown is in its place.
        """
        if not self.t.ema_decay and not self.taken:
            return
        for name, parameter in self.parameters.items():
            mean, shown = self.means[name], parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(self.hidden.pop(name, shown))

    def state(self) -> dict[str, Tensor]:
        """Named tensors for a checkpoint, these themselves: what is copied into them is put back."""
        means = {f"average/{name}": mean for name, mean in self.means.items()}
        return means | {"average_steps": self.steps, "average_taken": self.taken}


def average_of(model: GPT, t: TrainConfig) -> Average | None:
    """The average that the settings ask for, at the model's weights of now; None without."""
    return Average(model, t) if t.ema_decay or t.swa_every or t.tail_ema else None
