"""val_bpb of runs by tokens as an SVG: python docs/full_size_figure.py docs/full-size.svg runs/lowrank"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from pargolf.analysis.figures import on_paper, svg, theme
from pargolf.run.folder import open_run

COLORS = 6  # of the theme; further runs are dashed


def looks(folder: Path) -> list[tuple[float, float]]:
    """Millions of tokens and val_bpb at each look at the validation text."""
    run, config = open_run(folder)
    rows = map(json.loads, run.metrics.read_text().splitlines())
    return [
        (row["step"] * config.train.batch_tokens / 1e6, row["val_bpb"]) for row in rows if "val_bpb" in row
    ]


def figure(folders: list[Path]) -> Figure:
    with theme():
        drawn = Figure((6.6, 3.4), layout="constrained")
        axes = drawn.subplots()
        for number, folder in enumerate(folders):
            line = ".-" if number < COLORS else ".--"
            axes.plot(*zip(*looks(folder), strict=True), line, label=folder.name)
        axes.set(xlabel="millions of tokens", title="bits per byte of 14 unseen articles")
        axes.legend()
    return drawn


if __name__ == "__main__":
    out, *runs = map(Path, sys.argv[1:])
    out.write_text(on_paper(svg(figure(runs), "full-size")))
