"""Bits per byte over bytes as an SVG: python docs/budgets_figure.py runs/demo docs/budgets.svg runs/golf-*

The first run's compressors are the lines; the others are the points of a curve.
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from pargolf.analysis.figures import INK, MUTED, SERIES, on_paper, svg, theme

PPMD = "PPMd of order 8 after the training text", 1.8789  # benchmarks/compress.py, docs/results.md


def figure(demo: dict[str, Any], others: list[dict[str, Any]]) -> Figure:
    """Points of the runs (result.json), by MB of code and model, and a line for each general compressor."""
    lines = [PPMD, *((c["name"], c["bpb"]) for c in demo["compressors"] if "after" in c["name"])]
    points = sorted((r["bytes_total"] / 1e6, r["artifact"]["sliding"]["val_bpb"]) for r in others)
    with theme():
        drawn = Figure((6.6, 3.4), layout="constrained")
        axes = drawn.subplots()
        for name, bpb in lines:
            axes.axhline(bpb, color=MUTED, linewidth=0.9, linestyle="dashed")
            side = "top" if name.startswith("xz") else "bottom"  # zstd's line is close above
            axes.text(points[0][0], bpb, name, color=MUTED, va=side, fontsize=8)
        axes.plot(*zip(*points, strict=True), "o-", color=SERIES[0])
        for at in points:
            axes.annotate(f"{at[1]:.2f}", at, (0, -13), textcoords="offset points", ha="center", color=INK)
        at = demo["bytes_total"] / 1e6, demo["artifact"]["sliding"]["val_bpb"]
        axes.plot(*at, "o", color=SERIES[1])
        axes.annotate("make demo", at, (6, 3), textcoords="offset points", color=SERIES[1])
        axes.set_xscale("log")
        axes.set_xticks([0.5, 1, 2, 4, 8, 16])
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(y=0.12)
        axes.set_xlabel("MB of code and model")
        axes.set_title("bits per byte of unseen articles, 228 seconds of training on two cores")
    return drawn


if __name__ == "__main__":
    demo, out, *runs = map(Path, sys.argv[1:])
    results = [json.loads((run / "result.json").read_text()) for run in (demo, *runs)]
    out.write_text(on_paper(svg(figure(results[0], results[1:]), "budgets")))
