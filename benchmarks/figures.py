"""What a benchmark hands on: figures for programs, in JSON, and the rows that a person reads."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy import stats

from pargolf.system.console import say
from pargolf.system.files import write_json

# What a benchmark measured, as JSON has it; "title" says what and how, in a line.
Figures = dict[str, Any]
# The head of a table and its rows, in words.
Rows = list[list[str]]


def spread(values: Sequence[float]) -> Figures:
    """The median and its 95 % interval, which is known from 6 values on."""
    interval = stats.quantile_test(values, q=statistics.median(values), p=0.5).confidence_interval(0.95)
    known = len(values) >= 6
    low, high = (float(end) if known else None for end in interval)
    return {"median": statistics.median(values), "low": low, "high": high}


def in_words(spread: Figures, digits: int) -> str:
    """A `spread`: 1.556 (1.505 to 1.578)."""
    median, low, high = (
        f"{value:,.{digits}f}" if value is not None else ""
        for value in map(spread.get, ("median", "low", "high"))
    )
    return f"{median} ({low} to {high})" if low else median


def hand_on(figures: Figures, rows: Rows, path: Path | None) -> None:
    """Print a benchmark's table under its title; write its figures to `path`, if there is one."""
    if path is not None:
        write_json(path, figures)
    say(figures["title"])
    first, *others = rows[0]
    table = Table(first)
    for column in others:
        table.add_column(column, justify="right")
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=160).print(table)  # a file has no width
