"""The commands that look at finished runs and make many of them: one function a command, no logic."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from pargolf.cli.parse import parse


@dataclass
class AnalyzeArgs:
    """Singular values and ranks of a run's matrices, quantization errors, mixes and gains by depth.

    Prints tables, and writes analysis.json and analysis.svg into the run's folder.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder; its checkpoint and its model.pgz are looked at, or the one that is there."""
    energy_loss: float = 0.01
    """Share of a matrix's energy (squared Frobenius norm) that its needed rank may leave out."""
    all: bool = False
    """List every matrix, of checkpoint and artifact, instead of one row a role."""


def analyze(argv: list[str]) -> None:
    """Ranks of a run's matrices, quantization errors, mixes and gains by depth."""
    from pargolf.analysis import plots, tables
    from pargolf.analysis.analyze import analyze_run, save_analysis
    from pargolf.console import console

    args = parse(AnalyzeArgs, argv, "pargolf analyze")
    analysis = analyze_run(args.run, args.energy_loss)
    save_analysis(args.run, analysis)
    plots.save_overview(args.run, analysis)
    tables.show_analysis(analysis, args.all)
    console.print(f"written: {args.run}/analysis.json, analysis.svg", highlight=False, soft_wrap=True)
