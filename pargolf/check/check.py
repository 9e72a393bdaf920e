"""`pargolf check`: a challenge submission, judged against the written rules.

Nothing in the folder is run, imported or unpickled unless that is asked for. A rule ends as "ok",
as a "fault" where it is certain to be broken, as a "warning" where that is only suspected, or as
"not checked" where the folder does not tell.
"""

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pargolf.check import code, figures, files, seeds, sizes, times
from pargolf.check.evidence import SUBMISSION_JSON, Finding, gather
from pargolf.check.figures import RecordToBeat
from pargolf.check.folder import Folder, Unreadable, open_folder
from pargolf.check.run_script import Limits, run_submission
from pargolf.check.submission_json import LARGEST_SCORE, LARGEST_TEXT, read_stated_figures
from pargolf.check.validation_text import validation_text
from pargolf.system.console import console
from pargolf.system.errors import UserError

COLORS = {"ok": "green", "warning": "yellow", "fault": "red", "not checked": "dim"}


def check_folder(root: Path, against: RecordToBeat | None = None, run: Limits | None = None) -> list[Finding]:
    """Judge the submission in a folder: one finding a rule, in the order of the rules.

    `against` is the record it claims to beat; with `run`, train_gpt.py is run as well, within these
    limits. UserError if `root` is no folder.
    """
    evidence = gather(open_folder(root))
    findings = [
        files.folder(evidence),
        files.readme(evidence),
        files.submission_json(evidence),
        code.one_file(evidence),
        code.syntax(evidence),
        code.requirements(evidence),
        files.logs(evidence),
        seeds.seeds(evidence),
        sizes.size(evidence),
        sizes.stated_size(evidence),
        figures.stated_scores(evidence),
        validation_text(evidence),
        figures.record(evidence, against),
        times.training_time(evidence),
        times.evaluation_time(evidence),
        times.stated_steps(evidence),
        code.network(evidence),
        code.validation(evidence),
        code.score_first(evidence),
        code.documents(evidence),
        code.prediction(evidence),
    ]
    return [*findings, run_submission(evidence, run)] if run else findings


def find_record(against: str) -> RecordToBeat:
    """The record to beat: a val_bpb, or the folder or the submission.json of a record; else UserError."""
    with contextlib.suppress(ValueError):
        number = float(against)
        if not 0 < number < LARGEST_SCORE:
            raise UserError(f"--against {against}: a val_bpb lies between 0 and {LARGEST_SCORE}")
        return RecordToBeat(against, number)
    path = Path(against, SUBMISSION_JSON) if Path(against).is_dir() else Path(against)
    if not path.is_file():
        raise UserError(f"--against {against}: neither a number nor a submission.json or its folder")
    folder = Folder(path.parent, {path.name: path.stat().st_size}, ())
    try:
        stated = read_stated_figures(folder.read_text(path.name, LARGEST_TEXT))
    except (Unreadable, UserError) as problem:
        raise UserError(f"--against {against}: {problem}") from None
    if "val_bpb" not in stated.values:
        raise UserError(f"--against {against}: it states no val_bpb")
    return RecordToBeat(stated.values.get("name", against), float(stated.values["val_bpb"]))


def show_findings(root: Path, findings: list[Finding]) -> None:
    """Print a table of one line a rule."""
    table = Table(title=Text(f"check of {root}"), title_justify="left")
    for column in ("rule", "", "what was found"):
        table.add_column(column)
    for found in findings:
        # Text, since words of the folder could hold markup.
        table.add_row(found.rule, Text(found.level, COLORS[found.level]), Text(found.message))
    console.print(table)


def as_json(root: Path, findings: list[Finding]) -> dict[str, Any]:
    """The findings as plain values."""
    return {"folder": str(root), "accepted": not faults(findings), "rules": [asdict(f) for f in findings]}


def faults(findings: list[Finding]) -> list[str]:
    """The names of the rules that are broken."""
    return [found.rule for found in findings if found.level == "fault"]
