"""What comparisons and sweeps look like in the terminal."""

from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from pargolf.challenge import RECORD_LEVEL, RECORD_NATS
from pargolf.run.listing import Listed
from pargolf.study.compare import Comparison
from pargolf.study.statistics import TTest
from pargolf.system.console import console, say

if TYPE_CHECKING:  # brings Optuna, which a comparison does not need
    from pargolf.study.predict import Prediction
    from pargolf.study.screen import Screen
    from pargolf.study.sweep import Front


def show_comparison(comparison: Comparison) -> None:
    """Print the groups' scores, then their differences from the reference."""
    table = _table("scores", "", "group", "n", "val_bpb", "std", "bytes", "ms/step")
    for number, group in enumerate(comparison.groups, 1):
        table.add_row(
            f"{number}",
            escape(group.label),
            f"{len(group.records)}",
            f"{group.val_bpb:.4f}",
            _number(group.val_bpb_std, ".4f"),
            _number(group.bytes_total, ","),
            _number(group.step_ms, ".1f"),
        )
    console.print(table)
    if any(group.difference for group in comparison.groups):
        _show_differences(comparison)
    for note in comparison.notes:
        say(f"note: {note}")


def _show_differences(comparison: Comparison) -> None:
    compared = [(n, g.difference) for n, g in enumerate(comparison.groups, 1) if g.difference]
    tested = sum(d.test is not None for _, d in compared)
    several = tested > 1
    pairs = any(d.paired for _, d in compared)
    # Lines of 80 characters have room for the details of one test.
    columns = ["", "bpb ± 95 %", "nats", *([] if pairs else ["t", "df"]), "p", *(["Holm"] if several else [])]
    columns += ["paired ±", "its p"] if pairs else []
    table = _table(f"difference from {escape(comparison.reference)}; negative is better", *columns, "record")
    for number, d in compared:
        cells = [
            f"{number}",
            f"{d.bpb:+.4f}{f' ± {_half(d.test)}' if d.test else ''}",
            _number(d.nats, "+.4f"),
        ]
        if not pairs:
            cells += [f"{d.test.t:.1f}", f"{d.test.df:.1f}"] if d.test else ["", ""]
        cells += [f"{d.test.p:.2g}" if d.test else "no test"]
        cells += [_number(d.p_holm, ".2g")] if several else []
        cells += [_half(d.paired), _number(d.p_paired, ".2g")] if pairs else []
        table.add_row(*cells, "" if d.is_record is None else "yes" if d.is_record else "no")
    console.print(table)
    console.print(
        f"p: {comparison.method}; record: at least {RECORD_NATS} nats better at p < {RECORD_LEVEL}"
        + (f"\nHolm: corrected for {tested} comparisons, and so is record" if several else "")
        + ("\npaired: seed by seed, by the spread of all groups" if pairs else "")
        + ("; corrected likewise" if pairs and several else ""),
        highlight=False,
    )


def _half(test: TTest | None) -> str:
    """Half of the interval; empty without a test."""
    return f"{(test.high - test.low) / 2:.4f}" if test else ""


def show_screen(screen: "Screen", repeated: bool = False) -> None:
    """Print what each change does, and what is taken for chance: of `repeated` runs, or left unexplained."""
    columns = ["change", "runs", "bpb ± 95 %", "p", "Holm", "bytes", "ms/step"]
    table = _table("effect of each change beside half of the others; negative is better", *columns)
    for effect in screen.effects:
        half = (effect.high - effect.low) / 2
        table.add_row(
            escape(effect.change),
            f"{effect.runs}",
            f"{effect.bpb:+.4f} ± {half:.4f}",
            f"{effect.p:.2g}",
            _number(effect.p_holm, ".2g"),
            _number(effect.bytes_total, "+,.0f"),
            _number(effect.step_ms, "+.1f"),
        )
    console.print(table)
    chance = "repeated" if repeated else "unexplained"
    console.print(
        f"{screen.runs} runs, mean val_bpb {screen.mean:.4f}; {chance} std {screen.std:.4f},"
        f" {screen.df} degrees of freedom\np: t-test of least squares; Holm: corrected for"
        f" {len(screen.effects)} effects",
        highlight=False,
    )


def show_front(front: "Front") -> None:
    """Print the trials that no other beats in both val_bpb and bytes."""
    table = _table("Pareto front, within the budget", "trial", "val_bpb", "bytes", "settings")
    for point in front.points:
        changes = escape(point.name.replace(",", ", "))
        table.add_row(f"{point.number}", f"{point.val_bpb:.4f}", f"{point.bytes_total:,}", changes)
    console.print(table)
    say(f"{front.complete} trials finished, {front.pruned} were pruned, {front.failed} failed")


def show_predictions(predictions: list["Prediction"]) -> None:
    """Print a line for each run."""
    table = _table("val_loss at the end", "run", "seen", "beside", "predicted", "90 %", "ended at", "error")
    for p in predictions:
        error = "" if p.truth is None else f"{100 * (p.val_loss / p.truth - 1):+.2f} %"
        table.add_row(
            escape(p.name), f"{100 * p.step / p.total:.0f} %", f"{p.beside}", f"{p.val_loss:.4f}",
            f"{p.low:.4f} - {p.high:.4f}", _number(p.truth, ".4f"), error,
        )  # fmt: skip
    console.print(table)


def show_runs(runs: list[Listed]) -> None:
    """Print a line for each run."""
    table = _table("", "run", "state", "step", "val_bpb", "bytes", "written")
    for run in runs:
        step = _number(run.step, ",") + (f" of {run.iterations:,}" if run.iterations else "")
        table.add_row(
            escape(run.name), escape(run.state), step, _number(run.val_bpb, ".4f"),
            _number(run.bytes_total, ","), f"{run.changed:%Y-%m-%d %H:%M}",
        )  # fmt: skip
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    """A table in which, on a narrow terminal, only words wrap, and no number."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        words = column in ("group", "settings", "run", "state")
        table.add_column(column, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
