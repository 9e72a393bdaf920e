"""Do runs copy? What random tokens cost, and what the same tokens cost the second time.

    python benchmarks/copying.py runs/a runs/b

A model that has learnt to look up what followed a token earlier on (an induction head, arXiv 2209.11895)
guesses the second time well, however senseless the tokens. Weights are those of the checkpoint.
"""

from pathlib import Path

import torch
import tyro
from rich.table import Table

from pargolf.model.gpt import GPT
from pargolf.run.folder import open_run
from pargolf.system.console import console
from pargolf.train.checkpoint import load_weights

ROWS, TOKENS, SEED = 8, 256, 0


@torch.inference_mode()
def costs(model: GPT) -> tuple[float, float]:
    """Mean nats of a token of random rows, and of the same rows again, each after its BOS and the first."""
    c = model.config
    tokens = min(TOKENS, c.seq_len // 2)
    generator = torch.Generator().manual_seed(SEED)
    # From the second quarter of the vocabulary on: no control tokens and no bytes.
    row = torch.randint(c.vocab_size // 4, c.vocab_size, (ROWS, tokens), generator=generator)
    bos = torch.full((ROWS, 1), c.bos_id)
    rows = torch.cat((bos, row, row), dim=1)
    losses = model.loss(model.trunk(rows[:, :-1]), rows[:, 1:], reduction="none").float()
    return float(losses[:, :tokens].mean()), float(losses[:, tokens + 1 :].mean())


def main(runs: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Print a line a run."""
    table = Table("run", "step", "first time, nats", "second time")
    for folder in runs:
        run, config = open_run(folder)
        model = GPT(config.model, getattr(torch, config.train.dtype))
        progress = load_weights(run.checkpoint, model)
        first, second = costs(model)
        table.add_row(folder.name, str(progress.step), f"{first:.2f}", f"{second:.2f}")
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main)
