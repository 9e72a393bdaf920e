"""All weights of a model learn from what has just been coded."""

import torch
from torch import Tensor

from pargolf.model.gpt import GPT

RATE = 1e-3
STEPS = 1
BETAS = (0.9, 0.99)  # a file is short


class Learner:
    """Steps of Adam, without decay, on rows of tokens (dynamic evaluation, arXiv 1709.07432)."""

    def __init__(self, model: GPT, rate: float, steps: int):
        self.model, self.steps = model, steps
        self.optimizer = torch.optim.Adam(model.parameters(), rate, BETAS)

    @torch.enable_grad()
    def __call__(self, rows: Tensor) -> None:
        """Change the model by rows (B, T) int64 of tokens that follow each other."""
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            self.model(rows[:, :-1], rows[:, 1:]).backward()
            self.optimizer.step()
