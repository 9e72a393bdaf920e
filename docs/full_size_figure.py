"""val_bpb by tokens and by share of steps as an SVG: python docs/full_size_figure.py out.svg runs/lowrank"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from pargolf.analysis.figures import on_paper, svg, theme
from pargolf.run.folder import open_run


def looks(folder: Path) -> list[tuple[float, float, float]]:
    """Millions of tokens, percent of the steps and val_bpb at each look at the validation text."""
    run, config = open_run(folder)
    t = config.train
    return [
        (row["step"] * t.batch_tokens / 1e6, 100 * row["step"] / t.iterations, row["val_bpb"])
        for row in map(json.loads, run.metrics.read_text().splitlines())
        if "val_bpb" in row
    ]


def figure(folders: list[Path]) -> Figure:
    with theme():
        drawn = Figure((7.2, 3.2), layout="constrained")
        by_tokens, by_share = drawn.subplots(1, 2, sharey=True)
        for folder in folders:
            tokens, share, bpb = zip(*looks(folder), strict=True)
            by_tokens.plot(tokens, bpb, ".-", label=folder.name)
            by_share.plot(share, bpb, ".-")
        by_tokens.set(xlabel="millions of tokens", title="bits per byte of 14 unseen articles")
        by_share.set(xlabel="percent of the run, about as long for all")
        by_tokens.legend()
    return drawn


if __name__ == "__main__":
    out, *runs = map(Path, sys.argv[1:])
    out.write_text(on_paper(svg(figure(runs), "full-size")))
