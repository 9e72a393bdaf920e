"""The commands that look at finished runs and make many of them: one function a command, no logic."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from pargolf.cli.parse import parse


@dataclass
class ReportArgs:
    """Write one HTML page about a run: score, curves, bytes, weights, passages, samples; opens anywhere."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders; the page is about the first and compares it with the others."""
    out: Path | None = None
    """File to write; default: report.html in the first run's folder."""
    tokens: int = 2_000_000
    """Validation tokens to look at one by one, from the first on."""


def report(argv: list[str]) -> None:
    """One HTML page about a run, or about several side by side."""
    from pargolf.analysis.report import write_report

    args = parse(ReportArgs, argv, "pargolf report")
    print(write_report(args.runs, args.out, args.tokens))
