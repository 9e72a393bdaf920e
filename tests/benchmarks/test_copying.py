"""Copying is seen where it is, and nowhere else."""

import torch
from copying import costs

from pargolf.config.schema import ModelConfig
from support import shaken

C = ModelConfig(vocab_size=64, seq_len=32, n_layers=2, d_model=32, n_heads=2, kv_heads=1, q_rank=0)


def test_a_model_that_copies_is_told_from_one_that_does_not() -> None:
    model = shaken(C)
    first, second = costs(model)
    assert abs(first - second) < 0.25 * first

    def loss(rows: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        """Of one that knows all that it has seen before."""
        seen = torch.arange(rows.size(1)) >= rows.size(1) // 2
        return torch.where(seen, 0.0, 4.0).expand(len(rows), -1)

    model.loss = loss  # type: ignore[method-assign, assignment]
    assert costs(model) == (4.0, 0.0)
