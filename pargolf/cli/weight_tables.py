"""An analysis as tables for the terminal."""

from collections.abc import Sequence

from rich.table import Table

from pargolf.analysis.spectra import MatrixSpectrum
from pargolf.analysis.weights import Analysis, Channels
from pargolf.system.console import console


def show_analysis(analysis: Analysis, every_matrix: bool) -> None:
    """Print the matrices, by role or one by one, the quantization errors, and what changes with depth."""
    console.print(_matrices(analysis) if every_matrix else _roles(analysis))
    if analysis.quantization:
        console.print(_quantization(analysis))
    console.print(_depth(analysis))


def _roles(analysis: Analysis) -> Table:
    """One row a role, with the least and the most of its layers."""
    groups: dict[str, list[MatrixSpectrum]] = {}
    for m in analysis.of_source(analysis.source):
        groups.setdefault(m.label, []).append(m)
    table = _table(
        f"matrices of the {analysis.source}, range over layers",
        ("matrix", "shape", "condition", "entropy rank", _needed(analysis), "break-even"),
    )
    table.caption = "break-even: below this rank a matrix holds fewer values as two factors"
    for label, matrices in groups.items():
        rows, cols = matrices[0].rows, matrices[0].cols
        finite = [m.condition for m in matrices if m.condition is not None]
        table.add_row(
            label,
            f"{rows}×{cols}",
            _range(finite, ".3g") if len(finite) == len(matrices) else "singular",
            _range([m.entropy_rank for m in matrices], ".1f"),
            _range([m.needed_rank for m in matrices], "d"),
            "" if matrices[0].part in ("down", "up") else f"{rows * cols / (rows + cols):.0f}",
        )
    return table


def _matrices(analysis: Analysis) -> Table:
    """One row a matrix, in the model's order, with its figures in each source."""
    same: dict[str, list[MatrixSpectrum]] = {}
    for m in analysis.matrices:
        same.setdefault(m.name, []).append(m)
    table = _table(
        f"matrices: {' / '.join(dict.fromkeys(m.source for m in analysis.matrices))}",
        ("matrix", "layer", "shape", "condition", "entropy rank", _needed(analysis)),
    )
    for group in same.values():
        m = group[0]
        table.add_row(
            m.label,
            "" if m.layer is None else str(m.layer),
            f"{m.rows}×{m.cols}",
            " / ".join("singular" if m.condition is None else f"{m.condition:.3g}" for m in group),
            " / ".join(f"{m.entropy_rank:.1f}" for m in group),
            " / ".join(str(m.needed_rank) for m in group),
        )
    return table


def _quantization(analysis: Analysis) -> Table:
    table = _table(
        "quantization error",
        ("kind", "bits", "in file", "relative RMS", "largest", "worst tensor"),
    )
    for row in analysis.quantization:
        table.add_row(
            row.kind,
            str(row.bits),
            f"{row.file_bits:.2f}",
            f"{row.relative_rms:.3g}",
            f"{row.max_abs:.3g}",
            row.worst.removesuffix(".weight") if row.worst_relative_rms else "",
        )
    return table


def _depth(analysis: Analysis) -> Table:
    """One row a layer: what it mixes, what its skip adds, how sharply it may attend."""
    table = _table(
        "by depth: mean of channels (share below 0)",
        ("layer", "stream", "embedding", "skip", "q_gain of heads", "sharpness"),
    )
    table.caption = "sharpness: largest attention logit there can be, in nats, mean over heads"
    mixes = {mix.layer: mix for mix in analysis.mixes}
    skips = {skip.layer: skip for skip in analysis.skips}
    gains = {gain.layer: gain for gain in analysis.gains}
    for layer in sorted(mixes.keys() | skips.keys() | gains.keys()):
        mix, skip, gain = mixes.get(layer), skips.get(layer), gains.get(layer)
        table.add_row(
            str(layer),
            _channels(mix.stream) if mix else "",
            _channels(mix.embedding) if mix else "",
            _channels(skip.weight) if skip else "",
            f"{gain.mean:.2f} ({gain.min:.1f}–{gain.max:.1f})" if gain else "",
            f"{gain.sharpness:.1f}" if gain else "",
        )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _needed(analysis: Analysis) -> str:
    return f"rank, {100 * analysis.energy_loss:.3g} % lost"


def _channels(weights: Channels) -> str:
    return f"{weights.mean:+.2f} ({weights.negative:.0%})"


def _range(values: Sequence[float], form: str) -> str:
    low, high = (format(value, form) for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"
