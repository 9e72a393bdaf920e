"""The commands between a finished run and the challenge: one function a command, no logic."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pargolf.cli.parse import IN_WORDS, OptionalFloat, OptionalInt, OptionalPath, OptionalText, Paths, parse


@dataclass
class SubmitArgs:
    """Write a challenge submission folder: train_gpt.py, README.md, submission.json, logs, artifact."""

    runs: tyro.conf.Positional[Paths]
    """Folders of finished runs that differ in their seed alone."""
    author: str
    """Your name, for submission.json."""
    github_id: str
    """Your GitHub user name."""
    name: str
    """Title of the submission."""
    blurb: OptionalText = ""
    """The idea in a sentence or two."""
    out: OptionalPath = None
    """Folder to write; default: submissions/<date>_<name>."""
    form: Annotated[
        Literal["", "readable", "minified", "compressed"],
        tyro.conf.arg(metavar="{readable,minified,compressed}"),
        IN_WORDS,
    ] = ""
    """Form of train_gpt.py: readable (with comments), minified (without comments, with short names) or
    compressed (minified, and unpacks itself); default: what the runs' settings say."""
    unlimited: bool = False
    """For the challenge's track without a limit of training time."""
    record_loss: OptionalFloat = None
    """val_loss in nats of the record to beat, for the p-value."""
    positions: int = 64
    """Windows in which the score's validity is tested, as by `pargolf verify`."""
    dataset: OptionalPath = None
    """Folder of the validation shards for that test; default: the runs'."""


@dataclass
class CheckArgs:
    """Judge a submission's folder against the challenge's rules, without running what is in it."""

    folder: tyro.conf.Positional[Path]
    """The folder with submission.json, train_gpt.py, README.md and the logs."""
    against: OptionalText = ""
    """Record to beat: its val_bpb, or its folder or submission.json."""
    json: OptionalPath = None
    """Also write the findings to this file."""
    run: bool = False
    """Run train_gpt.py in a copy of the folder, within limits. The limits are no sandbox: run the
    code of strangers in a container."""
    run_seconds: int = 60
    """Longest time of that run."""
    run_memory_gb: float = 16.0
    """Largest address space of that run; 0 means no limit, which CUDA needs."""


@dataclass
class VerifyArgs:
    """Test the running model on the conditions of a valid score; exit code 2 if one does not hold."""

    artifact: tyro.conf.Positional[Path]
    """A model.pgz or a run's folder; with --module, whatever file its load() reads."""
    module: OptionalPath = None
    """Python file with load(artifact_path) that returns a model of your own (see docs/verify.md)."""
    positions: int = 64
    """Windows drawn from the validation stream; in each the future is changed at one position."""
    seed: int = 0
    """Random seed that draws the windows and positions."""
    stride: OptionalInt = 0
    """Tokens each window scores; default: the run's setting, else 64."""
    tokenizer: OptionalPath = None
    """Tokenizer of an artifact outside its run folder."""
    dataset: OptionalPath = None
    """Folder of the validation shards; default: the run's."""
    json: OptionalPath = None
    """Also write the verdict to this file."""


@dataclass
class ImportLogArgs:
    """Turn a published training log into a run's folder, to compare it with your own."""

    log: tyro.conf.Positional[Path]
    """A log of the challenge's train_gpt.py, or of one made from it."""
    name: OptionalText = ""
    """Name of the run's folder; default: made of the log's name and its folder's."""
    runs: Path = Path("runs")
    """Folder of all runs."""


def submit(argv: list[str]) -> None:
    """Turn finished runs, one a seed, into a submission folder."""
    args = parse(SubmitArgs, argv, "pargolf submit")
    from pargolf.cli import tables
    from pargolf.submission.submit import About, submit

    about = About(args.author, args.github_id, args.name, args.blurb, args.unlimited)
    tables.show_submission(
        submit(args.runs, about, args.out, args.form or None, args.record_loss, args.positions, args.dataset)
    )


def check(argv: list[str]) -> None:
    """Judge a submission's folder, anybody's, against the written rules."""
    args = parse(CheckArgs, argv, "pargolf check")
    from pargolf.check.check import as_json, check_folder, faults, find_record, show_findings
    from pargolf.check.run_script import Limits
    from pargolf.system.errors import UserError
    from pargolf.system.files import write_json

    record = find_record(args.against) if args.against else None
    limits = Limits(args.run_seconds, args.run_memory_gb) if args.run else None
    findings = check_folder(args.folder, record, limits)
    show_findings(args.folder, findings)
    if args.json:
        write_json(args.json, as_json(args.folder, findings))
    if broken := faults(findings):
        raise UserError(f"{args.folder} breaks {len(broken)} of {len(findings)} rules: {', '.join(broken)}")


def verify(argv: list[str]) -> None:
    """Prove on the running model that its score is valid: causal, normalized, repeatable, all counted."""
    args = parse(VerifyArgs, argv, "pargolf verify")
    from pargolf.cli import tables
    from pargolf.run.target import find_target
    from pargolf.verify.verify import check_verdict, verify_target, write_verdict

    target = find_target(args.artifact, args.tokenizer, args.dataset)
    scoring = target.scoring
    settings = replace(scoring, stride=args.stride or scoring.stride)
    verdict = verify_target(target, args.module, settings, args.positions, args.seed)
    tables.show_verdict(verdict)
    if args.json is not None:
        write_verdict(args.json, verdict, target)
    check_verdict(verdict, target)


def import_log(argv: list[str]) -> None:
    """Turn a published training log into a run's folder."""
    args = parse(ImportLogArgs, argv, "pargolf import-log")
    from pargolf.run.imported import import_run

    print(import_run(args.log, args.runs, args.name))
