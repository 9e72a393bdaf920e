"""What learning while being scored gains, and what it costs: python benchmarks/adapt.py runs/a runs/b runs/c.

Each run's artifact scores its validation text (or that of --dataset) by the sliding window, stream and
documents, and then by each form that learns, with the settings of the run. Figures are means over the runs,
which should differ in their seed alone; intervals are of 95 %, by t of the runs' own differences from the
sliding window.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.table import Table
from scipy import stats

from pargolf.config.schema import EvalConfig
from pargolf.data.text import Text
from pargolf.model.gpt import GPT
from pargolf.run.target import find_target, load_model
from pargolf.score.adapt import adapted_losses
from pargolf.score.windows import Window, document_windows, documents, window_losses, windows
from pargolf.system.console import console, say

BESIDE = "sliding"
EDGES = (0, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000)  # bytes read

Losses = Iterator[tuple[Window, np.ndarray]]


def forms(model: GPT, text: Text, settings: EvalConfig, stride: int) -> dict[str, Callable[[], Losses]]:
    """Each way to score the text, by the name of its row."""
    length, rows = model.config.seq_len, settings.batch_rows

    def learning(**fields: object) -> Callable[[], Losses]:
        return partial(adapted_losses, model, text, replace(settings, stride=stride, **fields))  # type: ignore[arg-type]

    def plain(plan: list[Window]) -> Callable[[], Losses]:
        return partial(window_losses, model, text.tokens, plan, rows)

    off, sgd = {"adapt": "off", "tilt": 0.0, "phases": 0}, {"adapt": "sgd", "tilt": 0.0, "phases": 0}
    lora = {"adapt": "lora", "documents": "apart", "tilt": 0.0, "phases": 0}
    return {
        BESIDE: plain(windows(len(text) - 1, length, stride)),
        "sliding, documents apart": plain(document_windows(text, length, stride)),
        "tilt 2": learning(**off | {"tilt": 2.0}),
        "sgd": learning(**sgd),
        "lora": learning(**lora | {"lora_warm": False}),
        "lora, warm": learning(**lora | {"lora_warm": True}),
        "lora, 3 phases": learning(**lora | {"phases": 3}),
        "lora, tilt 2": learning(**lora | {"tilt": 2.0}),
    }


def by_token(text: Text, losses: Losses) -> np.ndarray:
    """Nats of each token (tokens,), float64; the first is not scored."""
    found = np.zeros(len(text))
    for window, row in losses:
        found[window.targets] = row
    return found


def bytes_before(text: Text, apart: bool) -> np.ndarray:
    """Bytes of the stream, or of the token's own document, that come before each token (tokens,)."""
    total = np.cumsum(text.sizes, dtype=np.int64) - text.sizes
    if apart:
        for document in documents(text):
            inside = slice(document.start + 1, document.stop)
            total[inside] -= total[document.start + 1]
    return total


def gains(text: Text, plain: np.ndarray, learnt: np.ndarray, apart: bool) -> list[float]:
    """Bits per byte gained where so many bytes have been read: a mean for each step of EDGES."""
    before, found = bytes_before(text, apart), []
    for low, high in zip(EDGES, [*EDGES[1:], np.inf], strict=True):
        here = (before >= low) & (before < high)
        size = text.sizes[here].sum()
        found.append(float((plain - learnt)[here].sum() / np.log(2) / size) if size else float("nan"))
    return found


def interval(values: list[float]) -> str:
    """Mean, and half of its 95 % interval where there are two values or more."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.4f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.4f} ± {half:.4f}"


def main(
    runs: tyro.conf.Positional[list[Path]],
    dataset: Path | None = None,
    stride: int = 64,
    leave_out: tuple[str, ...] = (),
) -> None:
    """Print both tables, without the forms `leave_out`."""
    scores: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    along: dict[str, list[list[float]]] = {}
    for run in runs:
        target = find_target(run, dataset=dataset)
        model = load_model(target.open()[0], target.dtype)
        text = target.validation()
        losses: dict[str, np.ndarray] = {}
        chosen = forms(model, text, target.scoring, stride)
        for name, form in ((n, f) for n, f in chosen.items() if n not in leave_out):
            start = time.process_time()
            losses[name] = by_token(text, form())
            seconds.setdefault(name, []).append(time.process_time() - start)
            scores.setdefault(name, []).append(losses[name].sum() / np.log(2) / text.sizes[1:].sum())
            if name not in (BESIDE, "sliding, documents apart"):
                apart = name.startswith("lora")
                plain = losses["sliding, documents apart" if apart else BESIDE]
                along.setdefault(name, []).append(gains(text, plain, losses[name], apart))
            say(f"{run}, {name}: {scores[name][-1]:.4f} in {seconds[name][-1]:.1f} s")
    table = Table(title=f"{len(runs)} runs, {text.sizes[1:].sum():,} bytes", title_justify="left")
    for column in ("form", "bits per byte", "against sliding", "seconds", "sliding's"):
        table.add_column(column, justify="right" if column != "form" else "left")
    for name, found in scores.items():
        paired = [a - b for a, b in zip(found, scores[BESIDE], strict=True)]
        ratio = statistics.mean(a / b for a, b in zip(seconds[name], seconds[BESIDE], strict=True))
        against = interval(paired) if name != BESIDE else ""
        clock = f"{statistics.mean(seconds[name]):.1f}"
        table.add_row(name, f"{statistics.mean(found):.4f}", against, clock, f"{ratio:.1f}")
    console.print(table)
    say("gained after so many bytes, of the stream or (lora) of the document:")
    say(" ".join(f"{low:>7,}" for low in EDGES))
    for name, rows in along.items():
        say(" ".join(f"{value:7.3f}" for value in np.mean(rows, axis=0)) + f"  {name}")
    threads, processor = torch.get_num_threads(), target.device_type
    say(f"{threads} threads, {processor}; seconds of the processor, each form once for each run")


if __name__ == "__main__":
    tyro.cli(main)
