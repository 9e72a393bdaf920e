"""The report's figures: drawn by matplotlib, as SVG that follows the page into light or dark."""

import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import squarify
from matplotlib import rcsetup
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pargolf.analysis import plots
from pargolf.analysis.weights import Analysis
from pargolf.fit.budget import Ledger
from pargolf.score.passages import context_edges
from pargolf.study.records import RunRecord
from pargolf.study.screen import Screen
from pargolf.study.statistics import CONFIDENCE

# Colours of the light page, and the CSS variables that take their place inside the SVG. The dark
# page gives the variables other values. The last three are what `plots` asks for by name.
INK, MUTED, RULE = "#1d2430", "#5b6575", "#d9dee6"
SERIES = ("#2b6cb0", "#c05621", "#2c7a7b", "#7450c4", "#8a6116", "#b83280")
VARIABLES = {
    INK: "--ink", MUTED: "--muted", RULE: "--rule",
    **{color: f"--series-{index}" for index, color in enumerate(SERIES)},
    "#000000": "--ink", "#7f7f7f": "--muted", "#d3d3d3": "--rule",
}  # fmt: skip
SMALL = (4.4, 2.9)  # inches; two stand side by side, or one fills a phone
FAR = 1.5  # times the largest run, from which on a budget has no line
ASPECT = 2.0  # width over height of the treemap on a wide screen; others stretch it


@dataclass(frozen=True)
class Picture:
    """A figure for the page: its SVG, what a screen reader says in its place, and a caption."""

    svg: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Box:
    """A rectangle of the treemap; position and size in percent of the whole."""

    kind: str
    layer: int | None
    bytes: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Line:
    """One line of a picture of training: a run, or the mean of runs that differ in their random seed."""

    name: str
    runs: Sequence[Sequence[Mapping[str, Any]]]
    """The records of each run's metrics.jsonl or timing.jsonl."""

    @property
    def said(self) -> str:
        return f"{self.name}, mean of {len(self.runs)} runs" if len(self.runs) > 1 else self.name


@dataclass(frozen=True)
class Curve:
    """Steps, and over the runs of a `Line` the mean, the lowest and the highest value there; each (n,)."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@contextmanager
def theme() -> Iterator[None]:
    """Figures made within the block have the page's colours and sizes."""
    with matplotlib.rc_context(
        {
            "figure.facecolor": "none",
            "savefig.facecolor": "none",
            "axes.facecolor": "none",
            "axes.edgecolor": RULE,
            "axes.labelcolor": MUTED,
            "axes.titlecolor": INK,
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": rcsetup.cycler(color=SERIES),
            "grid.color": RULE,
            "grid.linewidth": 0.6,
            "xtick.color": RULE,
            "ytick.color": RULE,
            "xtick.labelcolor": MUTED,
            "ytick.labelcolor": MUTED,
            "text.color": INK,
            "font.size": 9,
            "legend.frameon": False,
            "lines.linewidth": 1.4,
            "svg.fonttype": "none",  # text stays text, in the page's font
        }
    ):
        yield


def svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element for a page that defines VARIABLES; the same figure gives the same bytes.

    `name` keeps the ids in it apart from those of the page's other figures.
    """
    file = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with theme(), matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=metadata)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # Clips are named by a hash of where they are, whose last digits vary with the layout's solver.
    clips: dict[str, str] = {}
    text = re.sub(
        r'(?<=[#"])p[0-9a-f]{10}(?=[)"])',
        lambda match: clips.setdefault(match[0], f"{name}-{len(clips)}"),
        text,
    )
    # So do the last digits of coordinates, which are millionths of a point.
    text = re.sub(r"-?\d+\.\d{5,}", lambda number: f"{float(number[0]):.3f}", text)
    # Names of groups would repeat from figure to figure, and nothing refers to them.
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return text


def on_paper(picture: str) -> str:
    """What `svg` made, as a file of its own: on white, in the light page's colours."""
    for color, variable in VARIABLES.items():
        picture = picture.replace(f"var({variable})", color)
    paper = '<rect width="100%" height="100%" fill="white"/>'
    return picture.replace(">", f">{paper}", 1).replace("<svg", '<svg font-family="sans-serif"', 1)


def loss_picture(lines: Sequence[Line]) -> Picture:
    """Training and validation loss (nats a token) and learning rate by step, from each run's metrics."""
    shown, caption = _shown(lines)
    with theme():
        figure = Figure(_room_for(shown), layout="constrained")
        top, bottom = figure.subplots(2, sharex=True, height_ratios=(5, 1))
        said = []
        for color, line in zip(SERIES, shown, strict=False):
            loss = _mean(line, "train_loss")
            top.plot(loss.steps, loss.mean, color=color, label="training" if len(shown) == 1 else None)
            top.fill_between(loss.steps, loss.low, loss.high, color=color, alpha=0.2, linewidth=0)
            val = _mean(line, "val_loss")
            spread = (val.mean - val.low, val.high - val.mean) if len(line.runs) > 1 else None
            label = "validation" if len(shown) == 1 else None
            top.errorbar(val.steps, val.mean, spread, fmt="o", color=color, markersize=4, label=label)
            rate = _mean(line, "lr_scale")
            bottom.plot(rate.steps, rate.mean, color=color)
            ends = [
                f"{kind} loss {at.mean[i]:.2f} at step {at.steps[i]:,.0f}"
                for kind, at, i in (("training", loss, 0), ("training", loss, -1), ("validation", val, -1))
                if len(at.steps)
            ]
            said += [f"{line.said}: {', '.join(ends)}"] if ends else []
        top.set_title("loss, nats a token")
        if len(shown) == 1:
            top.legend()
        bottom.set(ylim=(0, 1.1), yticks=(0, 1), xlabel="step")
        bottom.set_title("learning rate, of its peak")
        _whole_steps(bottom)
        _name_lines(figure, shown)
    caption = f"Loss of training batches, and of the validation text (dots).{caption}"
    return Picture(svg(figure, "loss"), "; ".join(said) or "no losses", caption)


def step_time_picture(lines: Sequence[Line]) -> Picture:
    """Milliseconds a step between two readings of the training clock, from each run's timing."""
    shown, _ = _shown(lines)
    with theme():
        figure = Figure(_room_for(shown), layout="constrained")
        axes = figure.subplots()
        said = []
        for color, line in zip(SERIES, shown, strict=False):
            clock = _mean(line, "seconds")
            if len(clock.steps) < 2:
                continue
            each = 1000 * np.diff(clock.mean) / np.diff(clock.steps)
            axes.stairs(each, clock.steps, baseline=None, color=color, linewidth=1.4)
            mean = 1000 * clock.mean[-1] / clock.steps[-1]
            axes.axhline(mean, color=color, linewidth=0.8, linestyle="dashed")
            said.append(f"{line.said}: {mean:.1f} ms a step on average, {each.min():.1f} to {each.max():.1f}")
        axes.set_ylim(bottom=0)
        axes.set_title("milliseconds a step")
        axes.set_xlabel("step")
        _whole_steps(axes)
        _name_lines(figure, shown)
    caption = "Time of a step between two lines of the log; dashed: mean."
    return Picture(svg(figure, "step-time"), "; ".join(said), caption)


def front_picture(records: Sequence[RunRecord], front: Sequence[RunRecord]) -> Picture:
    """val_bpb against bytes of every run that tells them, the runs of the Pareto front joined."""
    sized = [(r.bytes_total / 1e6, r.val_bpb) for r in records if r.bytes_total is not None]
    best = [(r.bytes_total / 1e6, r.val_bpb) for r in front if r.bytes_total is not None]
    budgets = sorted({r.budget for r in records if r.budget})
    # A budget far beyond all runs would press them into a corner: the caption then tells it alone.
    near = [budget for budget in budgets if budget <= FAR * 1e6 * max(size for size, _ in sized)]
    with theme():
        figure = Figure(SMALL, layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*sized, strict=True), "o", color=MUTED, markersize=3.5, label="runs")
        if best:
            axes.step(
                *zip(*best, strict=True), "o-", where="post", color=SERIES[0], markersize=5, label="front"
            )
        for budget in near:
            axes.axvline(budget / 1e6, color=SERIES[1], linewidth=0.8, linestyle="dashed", label="budget")
        axes.set_title("val_bpb, bits per byte")
        axes.set_xlabel("MB of code and model")
        axes.legend()
    told = " and ".join(f"{budget:,}" for budget in budgets)
    alt = "; ".join(f"{r.name}: {r.val_bpb:.4f} in {r.bytes_total:,} bytes" for r in front)
    caption = (
        f"{len(sized)} runs; joined: no other run within the budget"
        f"{f' ({told} bytes)' if told else ''} has both fewer bytes and a lower val_bpb."
    )
    return Picture(svg(figure, "front"), f"Pareto front; {alt or 'no run is within the budget'}", caption)


def effects_picture(screens: Sequence[Screen]) -> Picture:
    """Each change's effect with its interval, the best on top; changes that chance explains are grey."""
    effects = sorted((e for screen in screens for e in screen.effects), key=lambda e: -e.bpb)
    with theme():
        figure = Figure((SMALL[0] * 1.5, 0.9 + 0.2 * len(effects)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8)
        for place, effect in enumerate(effects):
            if effect.p_holm is None or effect.p_holm >= 1 - CONFIDENCE:
                color = MUTED
            else:
                color = SERIES[0] if effect.bpb < 0 else SERIES[1]
            axes.plot((effect.low, effect.high), (place, place), color=color, linewidth=1.8)
            axes.plot(effect.bpb, place, "o", color=color, markersize=4.5)
        axes.set_yticks(range(len(effects)), [e.change for e in effects])
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.set_title("effect on val_bpb, bits per byte; left is better")
    alt = "; ".join(f"{e.change}: {e.bpb:+.4f}" for e in reversed(effects))
    runs = sum(screen.runs for screen in screens)
    caption = (
        f"Effects of {len(effects)} changes in {runs} runs, each beside about half of the others, with 95 %"
        " intervals. Grey: may be chance (Holm)."
    )
    return Picture(svg(figure, "effects"), alt, caption)


def position_picture(bits: np.ndarray, sizes: np.ndarray) -> Picture:
    """Bits per byte by tokens of context 1, 2, ..., seq_len; sums of bits and bytes as of `by_position`."""
    edges = context_edges(len(bits))
    total_bits, total_sizes = (np.add.reduceat(x, edges[:-1]) for x in (bits, sizes))
    means = total_bits / np.maximum(total_sizes, 1)
    with theme():
        figure = Figure(SMALL, layout="constrained")
        axes = figure.subplots()
        seen = sizes > 0
        context = np.arange(1, len(bits) + 1)
        axes.plot(context[seen], bits[seen] / sizes[seen], ".", color=MUTED, alpha=0.3, markersize=3)
        axes.stairs(means, edges + 0.5, baseline=None, color=SERIES[0], linewidth=1.8, zorder=3)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.set_title("bits per byte")
        axes.set_xlabel("tokens of context")
    alt = f"{means[0]:.2f} bits per byte with 1 token of context, {means[-1]:.2f} with more than {edges[-2]}"
    caption = "Score by place in the window, plain rows; line: over ranges that double."
    return Picture(svg(figure, "position"), alt, caption)


def along_picture(plain: Sequence[float | None], adapted: Sequence[float | None]) -> Picture:
    """What learning gains in each part of the stream and up to it, in bits per byte; None: no byte there."""
    pairs = [(a, b) for a, b in zip(plain, adapted, strict=True) if a is not None and b is not None]
    gains = np.array([a - b for a, b in pairs])
    so_far = np.cumsum(gains) / np.arange(1, len(gains) + 1)
    share = 100 * np.arange(1, len(gains) + 1) / len(gains)
    with theme():
        figure = Figure(SMALL, layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.plot(share, gains, ".", color=MUTED, markersize=4)
        axes.plot(share, so_far, color=SERIES[0], linewidth=1.8)
        axes.set_title("bits per byte gained by learning")
        axes.set_xlabel("% of the text")
    early = so_far[len(so_far) // 10]
    alt = f"gain of {early:.3f} bits per byte after a tenth of the text, {so_far[-1]:.3f} at its end"
    caption = "What learning gains along the text, part by part; line: up to there."
    return Picture(svg(figure, "along"), alt, caption)


def passages_picture(bpbs: Sequence[float]) -> Picture:
    """How many passages cost how many bits per byte."""
    low, middle, high = np.quantile(bpbs, (0.05, 0.5, 0.95))
    with theme():
        figure = Figure(SMALL, layout="constrained")
        axes = figure.subplots()
        axes.hist(bpbs, bins=40, color=SERIES[0])
        axes.axvline(middle, color=INK, linewidth=0.8, linestyle="dashed")
        axes.set_title("passages")
        axes.set_xlabel("bits per byte")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    alt = (
        f"{len(bpbs):,} passages: half cost less than {middle:.2f} bits per byte,"
        f" one in twenty less than {low:.2f}, one in twenty more than {high:.2f}"
    )
    return Picture(svg(figure, "passages"), alt, f"{alt}. Dashed: the median.")


def weight_pictures(analysis: Analysis) -> list[Picture]:
    """Spectra, mixes by depth and, where it is known, quantization error: as wide as the page."""
    ranks: dict[str, list[float]] = {}
    for m in analysis.of_source(analysis.source):
        ranks.setdefault(f"{m.label} of {len(m.singular_values)}", []).append(m.entropy_rank)
    said = [f"{role}: {min(values):.0f} to {max(values):.0f}" for role, values in ranks.items()]
    mixes = [f"{mix.layer}: {mix.stream.mean:.2f} and {mix.embedding.mean:.2f}" for mix in analysis.mixes]
    losses = [f"{q.kind}: {q.relative_rms:.2g} at {q.file_bits:.2f} bits" for q in analysis.quantization]
    with theme():
        pictures = [
            Picture(
                _by_scheme(svg(plots.spectra_figure(analysis), "spectra"), plots.depth(analysis)),
                f"Effective ranks over the layers; {', '.join(said)}",
                "Singular values by layer, and how many dimensions they amount to.",
            ),
            Picture(
                svg(plots.mixes_figure(analysis), "mixes"),
                f"Mean weights of residual stream and embedding by layer; {', '.join(mixes) or 'none'}",
                "What each layer starts from, and how strongly its heads may attend.",
            ),
        ]
        if losses:
            picture = svg(plots.quantization_figure(analysis), "quantization")
            alt = f"Relative RMS error and bits a value in the file; {', '.join(losses)}"
            pictures.append(Picture(picture, alt, "What quantization loses, and what it saves."))
    return pictures


def _by_scheme(text: str, layers: int) -> str:
    """The SVG with the layers' colours for dark paper beside those for light paper."""
    dark = plots.layer_colors(layers, plots.ON_DARK)
    for ours, other in zip(plots.layer_colors(layers), dark, strict=True):
        # A browser that does not know light-dark keeps the first.
        text = re.sub(rf"(\w+): {ours}", rf"\1: {ours}; \1: light-dark({ours}, {other})", text)
    return text


def treemap(ledger: Ledger) -> list[Box]:
    """The ledger's bytes as areas: one block a kind, cut into its layers."""
    kinds = ledger.by_kind()
    blocks = _areas([size for _, size in kinds.values()], 0, 0, 100 * ASPECT, 100)
    boxes = []
    for kind, block in zip(kinds, blocks, strict=True):
        rows = sorted((row for row in ledger.rows if row.kind == kind), key=lambda row: row.layer or 0)
        cells = _areas([row.bytes for row in rows], block["x"], block["y"], block["dx"], block["dy"])
        for row, c in zip(rows, cells, strict=True):
            place = (c["x"] / ASPECT, c["y"], c["dx"] / ASPECT, c["dy"])
            boxes.append(Box(kind, row.layer, row.bytes, *place))
    return boxes


def _areas(sizes: list[int], x: float, y: float, width: float, height: float) -> list[dict[str, float]]:
    """The rectangle cut into one of its shape a size (squarified treemaps: Bruls et al., 2000)."""
    areas = squarify.normalize_sizes(sizes, width, height)
    cut: list[dict[str, float]] = squarify.squarify(areas, x, y, width, height)
    return cut


def _column(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records that have `name`."""
    pairs = [(record["step"], record[name]) for record in records if name in record]
    return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs])


def _mean(line: Line, name: str) -> Curve:
    """The runs' values of `name` over the steps that all runs came to, between readings by a straight line.

    Runs that have no step in common, such as readings at the ends of trainings that a clock ended, are
    left as they are: every reading is a point of its own.
    """
    columns = [column for column in (_column(records, name) for records in line.runs) if len(column[0])]
    if not columns:
        return Curve(*[np.array([])] * 4)
    steps = np.unique(np.concatenate([steps for steps, _ in columns]))
    first, last = max(steps[0] for steps, _ in columns), min(steps[-1] for steps, _ in columns)
    if first > last:
        order = np.argsort(every := np.concatenate([steps for steps, _ in columns]), kind="stable")
        values = np.concatenate([values for _, values in columns])[order]
        return Curve(every[order], values, values, values)
    steps = steps[(first <= steps) & (steps <= last)]
    values = np.array([np.interp(steps, *column) for column in columns])
    return Curve(steps, values.mean(0), values.min(0), values.max(0))


def _shown(lines: Sequence[Line]) -> tuple[Sequence[Line], str]:
    """As many lines as there are colours, and what the caption says of them."""
    said = ""
    if any(len(line.runs) > 1 for line in lines):
        said += " Lines and dots: means over random seeds; bands: lowest to highest."
    if len(lines) > len(SERIES):
        said += f" The first {len(SERIES)} of {len(lines)}."
    return lines[: len(SERIES)], said


def _room_for(lines: Sequence[Line]) -> tuple[float, float]:
    """Inches of a small figure with the names of its lines below."""
    rows = sum(_plain(line.name).count("\n") + 1 for line in lines) if len(lines) > 1 else 0
    return SMALL[0], SMALL[1] + 0.17 * rows


def _name_lines(figure: Figure, lines: Sequence[Line]) -> None:
    if len(lines) > 1:
        colors = [Line2D([], [], color=color) for color in SERIES[: len(lines)]]
        names = [_plain(line.name) for line in lines]
        figure.legend(colors, names, loc="outside lower left", fontsize="small")


def _plain(name: str) -> str:
    """A label that is not read as mathematics, in lines as wide as a small figure."""
    return textwrap.fill(name, 54).replace("$", r"\$")


def _whole_steps(axes: Any) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
