"""Seconds to score a text by sliding window: naive loops against `pargolf.score`, on one artifact.

    python benchmarks/score.py runs/demo

All methods take turns, several times, in one process; a ratio is the median of those within a turn.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import tyro
from figures import Figures, Rows, hand_on
from torch import Tensor
from train import processor

from pargolf.model.gpt import GPT
from pargolf.run.target import find_target, load_model
from pargolf.score import windows as scoring

OURS = "pargolf: and the last layer"


@torch.inference_mode()
def naive(model: GPT, tokens: np.ndarray, stride: int, rows: int) -> float:
    """val_loss by windows, at most `rows` at once, through all layers and the head at every position."""
    nats = 0.0
    plan = scoring.windows(len(tokens) - 1, model.config.seq_len, stride)
    for length, same in groupby(plan, key=lambda window: window.length):
        group = list(same)
        for batch in (group[i : i + rows] for i in range(0, len(group), rows)):
            spans = np.stack([tokens[w.start : w.start + length + 1] for w in batch]).astype(np.int64)
            span = torch.from_numpy(spans).to(model.embed.weight.device)
            losses = model.loss(model.trunk(span[:, :-1]), span[:, 1:], reduction="none")
            nats += sum(float(row[w.first :].double().sum()) for row, w in zip(losses, batch, strict=True))
    return nats / (len(tokens) - 1)


def head_where_scored(model: GPT, rows: Tensor, first: int) -> Tensor:
    """`token_losses` with all layers at every position: what pargolf did before it cut the last one."""
    return model.loss(model.trunk(rows[:, :-1])[:, first:], rows[:, first + 1 :], reduction="none")


def measure(run: Path, stride: int, tokens: int, rows: int, repeats: int) -> Figures:
    """Of each method val_loss, median seconds and ratio to pargolf's, on the first `tokens` of the text."""
    target = find_target(run)
    device = torch.device(target.device_type)
    model = load_model(target.open()[0], target.dtype).to(device)
    text = target.validation().first(tokens)

    def ours() -> float:
        return scoring.score(model, text, stride, rows).val_loss

    def before() -> float:
        with patch.object(scoring, "token_losses", head_where_scored):
            return ours()

    methods: dict[str, Callable[[], float]] = {
        "naive, 1 window at once": partial(naive, model, text.tokens, stride, 1),
        f"naive, {rows} windows at once": partial(naive, model, text.tokens, stride, rows),
        "head where scored": before,
        OURS: ours,
    }
    losses: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            start = time.perf_counter()
            losses[name] = method()
            seconds[name].append(time.perf_counter() - start)
    measured = [
        {
            "method": name,
            "val_loss": losses[name],
            "seconds": statistics.median(times),
            "times_ours": statistics.median(a / b for a, b in zip(times, seconds[OURS], strict=True)),
        }
        for name, times in seconds.items()
    ]
    title = (
        f"{run}: {len(text):,} tokens, window {model.config.seq_len}, stride {stride}, {model.dtype},"
        f" {processor(device)}, median of {repeats}"
    )
    return {"title": title, "methods": measured}


def in_rows(figures: Figures) -> Rows:
    """One row a method."""
    return [
        ["", "val_loss", "seconds", "times ours"],
        *(
            [m["method"], f"{m['val_loss']:.6f}", f"{m['seconds']:.2f}", f"{m['times_ours']:.2f}"]
            for m in figures["methods"]
        ),
    ]


def main(
    run: tyro.conf.Positional[Path],
    stride: int = 64,
    tokens: int = 16_384,
    rows: int = 32,
    repeats: int = 5,
    figures: Path | None = None,
) -> None:
    """Print the table for a run's artifact, and write its figures to the file `figures`."""
    found = measure(run, stride, tokens, rows, repeats)
    hand_on(found, in_rows(found), figures)


if __name__ == "__main__":
    tyro.cli(main)
