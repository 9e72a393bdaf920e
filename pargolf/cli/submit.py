"""The command that makes a submission of finished runs."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from pargolf.cli.parse import parse
from pargolf.errors import require


@dataclass
class SubmitArgs:
    """Write a challenge submission folder: train_gpt.py, README.md, submission.json, logs, artifact."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs that differ in their seed alone."""
    author: str
    github_id: str
    name: str
    """Title of the submission."""
    blurb: str = ""
    """What it is, in a sentence or two."""
    out: Path | None = None
    """Folder to write; default: submissions/<date>_<name>."""
    minify: bool = False
    """Write train_gpt.py without comments and with short names."""
    compressed: bool = False
    """Write it minified, compressed and unpacking itself."""
    record_loss: float | None = None
    """val_loss in nats of the record to beat, for the p-value."""


def submit(argv: list[str]) -> None:
    """Turn finished runs, one a seed, into a submission folder."""
    args = parse(SubmitArgs, argv, "pargolf submit RUN...")
    require(not (args.minify and args.compressed), "--compressed is minified as well; give one of the two")
    from pargolf import tables
    from pargolf.submission.submit import About, Form, submit

    about = About(args.author, args.github_id, args.name, args.blurb)
    form: Form = "compressed" if args.compressed else "minified" if args.minify else "readable"
    # Here the verdict of validity checks enters the README: submit(..., verdict=...), in Markdown.
    tables.show_submission(submit(args.runs, about, args.out, form, args.record_loss))
