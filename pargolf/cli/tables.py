"""The tables a person reads in the terminal."""

from typing import Any

from rich.table import Table
from rich.text import Text

from pargolf.compress.files import Report
from pargolf.config.schema import RunConfig
from pargolf.fit.budget import Ledger
from pargolf.plan.cost import Plan
from pargolf.plan.forecast import MEASURED_ON, MEASURED_SECONDS, MEASURED_TOKENS, Forecast
from pargolf.plan.needs import Needs
from pargolf.run.log_lines import taken
from pargolf.score.strides import StrideSample
from pargolf.study.records import RunRecord
from pargolf.submission.submit import Submission
from pargolf.system.console import console, say
from pargolf.verify.conditions import Verdict


def show_plan(name: str, config: RunConfig, plan: Plan, forecasts: list[Forecast]) -> None:
    """Print the cost of a configuration, and how long it will train where."""
    table = Table(title=Text(f"plan of {name}"), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for kind, count in plan.parameters.items():
        table.add_row(f"parameters, {kind}", f"{count:,}")
    table.add_row("parameters", f"{sum(plan.parameters.values()):,}", end_section=True)
    table.add_row("training FLOPs a token", f"{plan.train_flops:,}")
    table.add_row(
        "training FLOPs a step", f"{plan.train_flops * config.train.batch_tokens:.3e}", end_section=True
    )
    table.add_row("model bytes, expected", f"{plan.model_bytes.expected:,}")
    table.add_row("model bytes, at most", f"{plan.model_bytes.at_most:,}")
    table.add_row("code bytes", f"{plan.code_bytes:,}")
    table.add_row("budget", f"{plan.budget:,}")
    table.add_row("fits", plan.fits, end_section=True)
    table.add_row("memory, weights + optimizer", _megabytes(plan.weight_memory))
    table.add_row("memory, activations (about)", _megabytes(plan.activation_memory))
    console.print(table)
    on_cpu = forecasts[-1].gpus == 0
    table = Table(title="training, predicted", title_justify="left")
    for column in ("machine", "ms a step", "steps", "tokens", "seconds"):
        table.add_column(column, justify="left" if column == "machine" else "right")
    for row in forecasts:
        table.add_row(
            row.machine, f"{1000 * row.step_seconds:,.1f}", f"{row.steps:,}", f"{row.tokens:,}",
            f"{row.seconds:,.0f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"H100: at the share of the datasheet's rates that {MEASURED_ON} had on one,"
        f" {1000 * MEASURED_SECONDS:.1f} ms for {MEASURED_TOKENS:,} tokens; without the launching of kernels,"
        " which bounds small models; several not yet run. CPU: "
        + ("from two layers timed just now." if on_cpu else "it lacks the memory to try two layers."),
        highlight=False,
    )


def show_scoring(config: RunConfig, tokens: dict[str, float], forecasts: list[Forecast]) -> None:
    """Print how long each score of the validation text will take where."""
    table = Table(title="scoring, predicted: seconds", title_justify="left")
    table.add_column("machine")
    for how in tokens:
        table.add_column(how, justify="right")
    for row in forecasts:
        seconds = row.step_seconds / config.train.batch_tokens
        table.add_row(row.machine, *(f"{count * seconds:,.0f}" for count in tokens.values()))
    console.print(table)


def show_needs(machine: str, needs: Needs, price: float | None) -> None:
    """Print what a run on several GPUs has to download and what it pays for."""
    table = Table(title=f"one run on {machine}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    if needs.variant:
        table.add_row("training shards", f"{needs.train_shards}")
        table.add_row("download and disk, at most", f"{needs.download_bytes / 1e9:.1f} GB")
    table.add_row("minutes of training", f"{needs.train_seconds / 60:.1f}")
    table.add_row("minutes of scoring, at most", f"{needs.score_seconds / 60:.1f}")
    table.add_row("GPU-hours, at most", f"{needs.gpus * needs.hours:.2f}")
    if price is not None:
        table.add_row(f"USD, at {price:.2f} an hour, at most", f"{price * needs.hours:.2f}")
    console.print(table)
    say("On top: set-up, download, compiling, packing. Not yet run on several GPUs.")
    if needs.variant:
        say(f"data: pargolf data fineweb --variant {needs.variant} --train-shards {needs.train_shards}")
    say("before paying, look at fits and memory above, and run every stage on CPUs:")
    say("torchrun --standalone --nproc_per_node=2 -m pargolf run demo")


def show_ledger(ledger: Ledger) -> None:
    """Print where every byte of the artifact and its code went, by kind."""
    table = Table(title="byte ledger", title_justify="left")
    for column in ("kind", "values", "bytes", "bits a value", "share"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, (values, size) in ledger.by_kind().items():
        bits = f"{8 * size / values:.2f}" if values else ""
        table.add_row(kind, f"{values:,}" if values else "", f"{size:,}", bits, f"{size / ledger.total:.1%}")
    table.add_section()
    table.add_row("total", "", f"{ledger.total:,}", "", "100.0%")
    console.print(table)


def show_result(result: dict[str, Any]) -> None:
    """Print the scores before and after quantization, the bytes, and the time of each stage."""
    table = Table(title="bits per byte of the validation text", title_justify="left")
    for column in ("", "val_bpb", "val_loss", "seconds"):
        table.add_column(column, justify="right" if column else "left")
    for label, key in (("before quantization", "checkpoint"), ("artifact, from disk", "artifact")):
        for how, extent in taken(result).items():
            if row := result.get(key, {}).get(how):
                table.add_row(
                    f"{label}, {how}, {extent}",
                    f"{row['val_bpb']:.4f}",
                    f"{row['val_loss']:.4f}",
                    f"{row['seconds']:.1f}",
                )
    table.add_section()
    for row in result.get("compressors", []):
        table.add_row(row["name"], f"{row['bpb']:.4f}", "", f"{row['seconds']:.1f}")
    console.print(table)
    scored = result["artifact"]["sliding"]
    console.print(
        f"scored {scored['tokens']:,} tokens, {scored['bytes']:,} bytes;"
        f" artifact {result['bytes_model']:,} + code {result['bytes_code']:,}"
        f" = {result['bytes_total']:,} of {result['budget']:,} bytes"
        f" ({result['bytes_total'] / result['budget']:.1%})",
        highlight=False,
    )
    if "doubt" in result:
        console.print(f"note: {result['doubt']}", highlight=False)
    if "seconds" in result:
        console.print(
            "seconds: " + ", ".join(f"{stage} {value:.1f}" for stage, value in result["seconds"].items()),
            highlight=False,
        )


def show_strides(sample: StrideSample) -> None:
    """Print what each stride scores on the sample, its seconds there, and for the whole stream."""
    tokens = sample.rows[0].score.tokens
    table = Table(
        title=f"the first {tokens:,} of {sample.of_tokens:,} validation tokens, by stride",
        title_justify="left",
    )
    for column in ("stride", "val_bpb", "seconds", "for all, about"):
        table.add_column(column, justify="right")
    for row in sample.rows:
        whole = row.seconds * sample.of_tokens / tokens
        table.add_row(f"{row.stride:,}", f"{row.score.val_bpb:.4f}", f"{row.seconds:.2f}", f"{whole:,.1f}")
    console.print(table)


def show_compressed(report: Report, record: RunRecord | None) -> None:
    """Print what a file was compressed to, where its bytes went, and how it compares with the run's score."""
    header, size = report.header, report.header.bytes
    table = Table(
        title=f"{size:,} bytes, {header.tokens:,} tokens in {header.streams} streams"
        + (", learning from what has been coded" if header.rate else ""),
        title_justify="left",
    )
    for column in ("", "bytes", "bits a byte of the original"):
        table.add_column(column, justify="right" if column else "left")
    rest = report.file_bytes - report.coded_bytes
    starts = round(report.start_bits / 8)
    for what, part in (
        ("tokens, coded", report.coded_bytes),
        (f"of these, {header.streams - 1} more starts (about)", starts),
        ("header and checksum", rest),
        ("the whole file", report.file_bytes),
    ):
        if part:
            table.add_row(what, f"{part:,}", f"{8 * part / size:.4f}" if size else "")
    console.print(table)
    if record is not None:
        window = record.settings["model.seq_len"]
        say(
            f"the run's val_bpb is {record.val_bpb:.4f}: its validation text, without a header, each token"
            f" predicted from {window - (record.stride or window) + 1} to {window} before it; here from"
            f" {header.keep} to {window}, at the start of a stream from fewer"
        )
    _show_seconds(report)


def show_restored(report: Report) -> None:
    """Print what a file was restored to."""
    say(f"{report.header.bytes:,} bytes, SHA-256 {report.header.sha256}, as before they were compressed")
    _show_seconds(report)


def _show_seconds(report: Report) -> None:
    say("seconds: " + ", ".join(f"{step} {value:.2f}" for step, value in report.seconds.items()))


def show_verdict(verdict: Verdict) -> None:
    """Print one line for each condition of a valid score."""
    words = {True: "holds", False: "BROKEN", None: "unknown"}
    for row in verdict.rows:
        console.print(
            f"{row.condition:<13}  {words[row.holds]:<7}  {row.measured}", highlight=False, soft_wrap=True
        )


def show_submission(submission: Submission) -> None:
    """Print what a submission scores, and the size of its code in each form."""
    summary = submission.summary
    console.print(f"written: {submission.folder}", highlight=False, soft_wrap=True)
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    seeds = len(summary["seeds"])
    table.add_row(
        "val_bpb" + (f", mean over {seeds} seeds" if seeds > 1 else ""), f"{summary['val_bpb']:.4f}"
    )
    table.add_row("val_loss", f"{summary['val_loss']:.4f}")
    if summary["p_value"] is not None:
        table.add_row("p-value", f"{summary['p_value']:.3g}")
    table.add_section()
    for form, size in submission.sizes.items():
        table.add_row(f"code, {form}" + (" (written)" if form == submission.form else ""), f"{size:,}")
    table.add_section()
    table.add_row("artifact of the best seed", f"{summary['bytes_model']:,}")
    table.add_row("artifact + code", f"{summary['bytes_total']:,}")
    console.print(table)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
