"""What learning while being scored gains, and what it costs: python benchmarks/adapt.py runs/a runs/b runs/c.

Each run's artifact scores its validation text (or that of --dataset) by the sliding window, stream and
documents, and then by each form that learns, with the settings of the run. Figures are means over the runs,
which should differ in their seed alone; intervals are of 95 %, by t of the runs' own differences from the
sliding window.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from figures import Figures, Rows, hand_on
from scipy import stats
from train import processor

from pargolf.config.schema import EvalConfig
from pargolf.data.text import Text
from pargolf.model.gpt import GPT
from pargolf.run.target import find_target, load_model
from pargolf.score.adapt import adapted_losses
from pargolf.score.windows import Window, document_windows, documents, window_losses, windows
from pargolf.system.console import say

BESIDE, APART = "sliding", "sliding, documents apart"
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
        APART: plain(document_windows(text, length, stride)),
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


def interval(values: list[float]) -> Figures:
    """Mean, and half of its 95 % interval where there are two values or more."""
    half = None
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": statistics.mean(values), "half": half}


@dataclass(frozen=True)
class Found:
    """What one form scored: a value a run."""

    bpb: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    along: list[list[float]] = field(default_factory=list)
    """`gains`; of the forms that learn."""


def scored(
    run: Path,
    dataset: Path | None,
    stride: int,
    tokens: int,
    leave_out: tuple[str, ...],
    found: dict[str, Found],
) -> str:
    """Score a run in each form into `found`; returns what was scored where."""
    target = find_target(run, dataset=dataset)
    device = torch.device(target.device_type)
    model = load_model(target.open()[0], target.dtype).to(device)
    text = target.validation()
    text = text.first(tokens) if tokens else text
    now = time.process_time if device.type == "cpu" else time.perf_counter  # a GPU's work is not the host's
    losses: dict[str, np.ndarray] = {}
    for name, form in forms(model, text, target.scoring, stride).items():
        if name in leave_out:
            continue
        start = now()
        losses[name] = by_token(text, form())
        its = found.setdefault(name, Found())
        its.seconds.append(now() - start)
        its.bpb.append(losses[name].sum() / np.log(2) / text.sizes[1:].sum())
        if name not in (BESIDE, APART):
            apart = name.startswith("lora")
            its.along.append(gains(text, losses[APART if apart else BESIDE], losses[name], apart))
        say(f"{run}, {name}: {its.bpb[-1]:.4f} in {its.seconds[-1]:.1f} s")
    clock = "seconds of the processor" if device.type == "cpu" else "seconds"
    return (
        f"{len(text):,} tokens, {text.sizes[1:].sum():,} bytes, stride {stride}; {processor(device)}, {clock}"
    )


def measure(
    runs: list[Path], dataset: Path | None, stride: int, tokens: int, leave_out: tuple[str, ...]
) -> Figures:
    """Of each form bits per byte, what it gains on the sliding window, seconds, and gains along the text."""
    found: dict[str, Found] = {}
    for run in runs:
        where = scored(run, dataset, stride, tokens, leave_out, found)
    beside = found[BESIDE]
    measured = [
        {
            "form": name,
            "bpb": statistics.mean(its.bpb),
            "against": interval([a - b for a, b in zip(its.bpb, beside.bpb, strict=True)]),
            "seconds": statistics.mean(its.seconds),
            "times_sliding": statistics.mean(a / b for a, b in zip(its.seconds, beside.seconds, strict=True)),
            "along": [None if np.isnan(gain) else float(gain) for gain in np.mean(its.along, axis=0)]
            if its.along
            else None,
        }
        for name, its in found.items()
    ]
    return {"title": f"{len(runs)} runs, {where}", "edges": EDGES, "forms": measured}


def in_rows(figures: Figures) -> Rows:
    """One row a form."""
    rows = [["form", "bits per byte", "against sliding", "seconds", "sliding's"]]
    for form in figures["forms"]:
        mean, half = form["against"]["mean"], form["against"]["half"]
        against = f"{mean:+.4f}" + (f" ± {half:.4f}" if half is not None else "")
        rows.append([
            form["form"], f"{form['bpb']:.4f}", against if form["form"] != BESIDE else "",
            f"{form['seconds']:.1f}", f"{form['times_sliding']:.1f}",
        ])  # fmt: skip
    return rows


def main(
    runs: tyro.conf.Positional[list[Path]],
    dataset: Path | None = None,
    stride: int = 64,
    tokens: int = 0,
    leave_out: tuple[str, ...] = (),
    figures: Path | None = None,
) -> None:
    """Print both tables, of the first `tokens` (0: of all), without the forms `leave_out`.

    Write what `measure` finds to the file `figures`.
    """
    found = measure(runs, dataset, stride, tokens, leave_out)
    hand_on(found, in_rows(found), figures)
    say("gained after so many bytes, of the stream or (lora) of the document:")
    say(" ".join(f"{low:>7,}" for low in EDGES))
    for form in found["forms"]:
        if form["along"]:
            values = " ".join("       " if gain is None else f"{gain:7.3f}" for gain in form["along"])
            say(f"{values}  {form['form']}")


if __name__ == "__main__":
    tyro.cli(main)
