"""The rules on the folder and its texts."""

from pargolf.check.evidence import CODE, SUBMISSION_JSON, Evidence, Finding, finding, judge
from pargolf.check.folder import Unreadable
from pargolf.check.submission_json import LARGEST_TEXT


def folder(evidence: Evidence) -> Finding:
    """Nothing but files and folders, and no link that leaves."""
    return judge("folder", list(evidence.folder.oddities[:5]), [], f"{len(evidence.folder.sizes)} files")


def readme(evidence: Evidence) -> Finding:
    """README.md explains the submission."""
    if "README.md" not in evidence.folder.sizes:
        return finding("README.md", "fault", "README.md is missing")
    try:
        text = evidence.folder.read_text("README.md", LARGEST_TEXT)
    except Unreadable as problem:
        return finding("README.md", "fault", str(problem))
    return judge(
        "README.md", [] if text.strip() else ["README.md is empty"], [], f"{len(text.split())} words"
    )


def submission_json(evidence: Evidence) -> Finding:
    """submission.json holds the fields that records carry, of the right types."""
    if evidence.stated is None:
        problem = evidence.problems.get(SUBMISSION_JSON, f"{SUBMISSION_JSON} is missing")
        return finding(SUBMISSION_JSON, "fault", str(problem))
    stated = len(evidence.stated.values)
    return judge(SUBMISSION_JSON, evidence.stated.faults, evidence.stated.doubts, f"{stated} known fields")


def logs(evidence: Evidence) -> Finding:
    """There are training logs, and each can be read."""
    doubts = list(evidence.copies)
    doubts += [
        str(problem) for name, problem in evidence.problems.items() if name not in (CODE, SUBMISSION_JSON)
    ]
    if not evidence.logs:
        return finding("train logs", "fault", "; ".join(["there is no training log", *doubts]))
    return judge("train logs", [], doubts, ", ".join(run.name for run in evidence.logs))
