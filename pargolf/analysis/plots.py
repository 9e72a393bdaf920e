"""The plots of an analysis: each a matplotlib Figure, to be saved alone or put on a page."""

import io
from collections.abc import Callable
from math import ceil
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from pargolf.analysis.spectra import MatrixSpectrum
from pargolf.analysis.weights import Analysis, Channels
from pargolf.run.folder import Run
from pargolf.system.files import write_atomic

Draw = Callable[[SubFigure, Analysis], None]
WIDTH = 11.0  # inches
PANELS = 4  # in a row
DEPTH = "plasma"  # layers from dark to light
# The parts of it that stand out, 3:1 and more, from light and from dark paper.
ON_LIGHT, ON_DARK = (0.0, 0.6), (0.4, 1.0)


def spectra_figure(analysis: Analysis) -> Figure:
    """Singular values of each role's matrices by layer, and their effective ranks by depth."""
    return _figure(analysis, (_draw_spectra, _draw_ranks))


def mixes_figure(analysis: Analysis) -> Figure:
    """resid_mix, skip weights and q_gain by depth."""
    return _figure(analysis, (_draw_mixes,))


def quantization_figure(analysis: Analysis) -> Figure:
    """Error and bits a value by kind of tensor; empty axes if there is nothing to compare."""
    return _figure(analysis, (_draw_quantization,))


def overview_figure(analysis: Analysis) -> Figure:
    """All of these below each other."""
    compared = (_draw_quantization,) if analysis.quantization else ()
    return _figure(analysis, (_draw_spectra, _draw_ranks, _draw_mixes, *compared))


def layer_colors(layers: int, part: tuple[float, float] = ON_LIGHT) -> list[str]:
    """A colour for each layer, the first to the last, as "#rrggbb"; the figures have those on light paper."""
    return [to_hex(color) for color in matplotlib.colormaps[DEPTH](np.linspace(*part, layers))]


def depth(analysis: Analysis) -> int:
    """How many layers the matrices are of, one at least."""
    return 1 + max(m.layer or 0 for m in analysis.matrices)


def to_svg(figure: Figure) -> bytes:
    """A whole SVG file, in which text stays text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg")
    return buffer.getvalue()


def save_overview(folder: Path, analysis: Analysis) -> None:
    """Write analysis.svg into the run's folder, in one step."""
    write_atomic(Run(folder).analysis_plot, to_svg(overview_figure(analysis)))


def _figure(analysis: Analysis, draws: tuple[Draw, ...]) -> Figure:
    heights = [5.0 if draw is _draw_spectra else 2.8 for draw in draws]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(draws), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, draw in zip(parts, draws, strict=True):
        draw(part, analysis)
    return figure


def _draw_spectra(figure: SubFigure, analysis: Analysis) -> None:
    """One panel a role, one line a layer: singular values over the largest, by index."""
    roles = _by_role(analysis)
    axes = list(figure.subplots(ceil(len(roles) / PANELS), PANELS, sharey=True, squeeze=False).flat)
    colors = layer_colors(depth(analysis))
    lines = {}
    for ax, (role, matrices) in zip(axes, roles.items(), strict=False):
        for m in matrices:
            largest = m.singular_values[0] or 1.0  # a matrix of zeros has no place on a log scale
            shares = [value / largest for value in m.singular_values]
            color = "black" if m.layer is None else colors[m.layer]
            (lines[m.layer],) = ax.plot(range(1, len(shares) + 1), shares, color=color, linewidth=1)
        ax.set(title=f"{role}, {matrices[0].rows}×{matrices[0].cols}", yscale="log")
    for ax in axes[len(roles) :]:
        ax.set_axis_off()
    layers = {f"layer {layer}": line for layer, line in lines.items() if layer is not None}
    figure.legend(layers.values(), layers.keys(), loc="outside right center", fontsize="small")
    figure.suptitle(f"singular values of the {analysis.source}, over the largest")


def _draw_ranks(figure: SubFigure, analysis: Analysis) -> None:
    """Entropy rank and needed rank by layer, one line a role."""
    entropy, needed = figure.subplots(1, 2)
    for role, matrices in _by_role(analysis).items():
        layers = [m.layer for m in matrices if m.layer is not None]
        if layers:
            entropy.plot(layers, [m.entropy_rank for m in matrices], marker=".", label=role)
            needed.plot(layers, [m.needed_rank for m in matrices], marker=".")
    _by_layer(entropy, "effective rank (entropy)", ylim=(0, None))
    _by_layer(
        needed, f"rank that leaves out {100 * analysis.energy_loss:.3g} % of the energy", ylim=(0, None)
    )
    figure.legend(loc="outside right center", fontsize="small")


def _draw_mixes(figure: SubFigure, analysis: Analysis) -> None:
    """Mean and standard deviation of resid_mix and skip weights by layer; gains of each head."""
    means, negative, gains = figure.subplots(1, 3)
    rows: list[tuple[str, list[int], list[Channels]]] = [
        ("residual stream", [m.layer for m in analysis.mixes], [m.stream for m in analysis.mixes]),
        ("embedding", [m.layer for m in analysis.mixes], [m.embedding for m in analysis.mixes]),
        ("skip", [s.layer for s in analysis.skips], [s.weight for s in analysis.skips]),
    ]
    for label, layers, weights in rows:
        _draw_band(means, layers, weights)
        negative.plot(layers, [w.negative for w in weights], marker=".", label=label)
    means.axhline(0, color="black", linewidth=0.5)
    _by_layer(means, "resid_mix and skips, mean ± std")
    _by_layer(negative, "share of negative channels", ylim=(0, 1))
    for gain in analysis.gains:
        gains.plot([gain.layer] * len(gain.heads), gain.heads, ".", color="tab:gray")
    gains.plot([g.layer for g in analysis.gains], [g.mean for g in analysis.gains], color="black")
    _by_layer(gains, "q_gain of each head, and mean")
    figure.legend(loc="outside right center", fontsize="small")


def _draw_band(ax: Axes, layers: list[int], weights: list[Channels]) -> None:
    (line,) = ax.plot(layers, [w.mean for w in weights], marker=".")
    low, high = [w.mean - w.std for w in weights], [w.mean + w.std for w in weights]
    ax.fill_between(layers, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _by_layer(ax: Axes, title: str, ylim: tuple[float, float | None] | None = None) -> None:
    ax.set(title=title, xlabel="layer", ylim=ylim)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_quantization(figure: SubFigure, analysis: Analysis) -> None:
    """Bars by kind: relative RMS error, and bits a value as set and as they came out."""
    errors, bits = figure.subplots(1, 2)
    kinds = [row.kind for row in analysis.quantization]
    errors.bar(kinds, [row.relative_rms for row in analysis.quantization])
    errors.set(title="relative RMS error of quantization")
    bits.bar(kinds, [row.bits for row in analysis.quantization], color="lightgray", label="as set")
    bits.bar(kinds, [row.file_bits for row in analysis.quantization], width=0.4, label="in the file")
    bits.set(title="bits a value")
    bits.legend(fontsize="small")


def _by_role(analysis: Analysis) -> dict[str, list[MatrixSpectrum]]:
    """Whole matrices and products of the analysis' source, by role in the model's order."""
    roles: dict[str, list[MatrixSpectrum]] = {}
    for m in analysis.of_source(analysis.source):
        if m.part in ("full", "product"):
            roles.setdefault(m.role, []).append(m)
    return roles
