"""What a submission's folder holds, read once; the rules judge it."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import PurePosixPath
from typing import Literal, TypeVar

from pargolf.check.folder import Folder, Unreadable
from pargolf.check.leaks import Leaks, find_leaks
from pargolf.check.sources import LARGEST_CODE, Broken, Source, read_source
from pargolf.check.submission_json import LARGEST_TEXT, StatedFigures, read_stated_figures
from pargolf.run.logs import LARGEST_LOG, TrainLog, parse_log
from pargolf.system.errors import UserError

CODE = "train_gpt.py"
SUBMISSION_JSON = "submission.json"
README = "README.md"
# How published records name a compressed model, and one that is not compressed.
COMPRESSED = frozenset({".br", ".gz", ".lzma", ".pgz", ".ptz", ".xz", ".zlib", ".zst"})
PLAIN = frozenset({".bin", ".npz", ".pt", ".pth", ".safetensors"})

Level = Literal["ok", "warning", "fault", "not checked"]
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """How a submission fares by one rule."""

    rule: str
    level: Level
    message: str


def finding(rule: str, level: Level, message: str) -> Finding:
    """A finding whose message is one line without control characters, wherever its words come from."""
    line = "".join(c if c.isprintable() else " " for c in message)
    return Finding(rule, level, line if len(line) <= 400 else line[:397] + "...")


def judge(rule: str, faults: list[str], doubts: list[str], good: str) -> Finding:
    """A fault if there are faults, a warning if there are doubts, else ok with `good`."""
    if faults or doubts:
        return finding(rule, "fault" if faults else "warning", "; ".join(faults or doubts))
    return finding(rule, "ok", good)


@dataclass(frozen=True)
class RunLog:
    """A training log in the folder."""

    name: str
    log: TrainLog

    @property
    def named_seed(self) -> int | None:
        """The seed in the file's name."""
        found = re.search(r"seed[_-]?(\d{1,12})", PurePosixPath(self.name).stem)
        return int(found[1]) if found else None

    @property
    def seed(self) -> int | None:
        """The seed as the log states it, else as its name does."""
        return self.log.seed if self.log.seed is not None else self.named_seed


@dataclass
class Evidence:
    """A folder and all that could be read in it."""

    folder: Folder
    stated: StatedFigures | None = None
    source: Source | None = None
    logs: list[RunLog] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    """Logs that repeat another one byte for byte."""
    problems: dict[str, Exception] = field(default_factory=dict)
    """By file: why it could not be read, though it is there."""

    @cached_property
    def leaks(self) -> Leaks | None:
        """What becomes of the validation data in the code; None if it cannot be followed."""
        try:
            return find_leaks(self.source) if self.source else None
        except RecursionError:  # expressions nested as nobody writes them
            return None

    @property
    def unlimited(self) -> bool:
        """Whether it is of a track without limits of time and seeds."""
        return self.stated is not None and "non" in self.stated.track.lower()

    @property
    def stated_logs(self) -> list[RunLog]:
        """The logs of the stated seeds; all of them if no seeds are stated."""
        seeds = self.stated.seeds if self.stated else set()
        return [run for run in self.logs if not seeds or run.seed in seeds]

    @cached_property
    def texts(self) -> dict[str, str]:
        """What README.md and the blurb of submission.json say."""
        texts = {SUBMISSION_JSON: str(self.stated.values.get("blurb", ""))} if self.stated else {}
        if (readme := _attempt(self, README, partial(self.folder.read_text, limit=LARGEST_TEXT))) is not None:
            texts[README] = readme
        return texts

    def logs_of(self, seed: int) -> list[RunLog]:
        """The logs of one seed."""
        return [run for run in self.logs if run.seed == seed]

    @property
    def code_bytes(self) -> int | None:
        """Bytes of train_gpt.py."""
        return self.folder.sizes.get(CODE)

    @property
    def models(self) -> dict[str, int]:
        """Bytes of the compressed models in the folder; of plain ones if none is compressed."""
        for suffixes in (COMPRESSED, PLAIN):
            found = {
                name: size
                for name, size in self.folder.sizes.items()
                if PurePosixPath(name).suffix in suffixes and ".log" not in name and ".txt" not in name
            }
            if found:
                return found
        return {}


def gather(folder: Folder) -> Evidence:
    """Read a folder's texts, logs and code; what cannot be read is noted, and nothing is run."""
    evidence = Evidence(folder)
    evidence.stated = _attempt(
        evidence, SUBMISSION_JSON, lambda name: read_stated_figures(folder.read_text(name, LARGEST_TEXT))
    )
    evidence.source = _attempt(evidence, CODE, lambda name: read_source(folder.read(name, LARGEST_CODE)))
    digests: dict[bytes, str] = {}
    for name in folder.sizes:
        path = PurePosixPath(name)
        if path.suffix not in (".log", ".txt") or path.name.startswith("requirements"):
            continue
        text = _attempt(evidence, name, partial(folder.read_text, limit=LARGEST_LOG))
        if text is None:
            continue
        try:
            log = parse_log(text)
        except UserError:
            continue  # notes, or another program's log
        digest = hashlib.sha256(text.encode()).digest()
        if digest in digests:
            evidence.copies.append(f"{name} is a copy of {digests[digest]}")
        else:
            digests[digest] = name
            evidence.logs.append(RunLog(name, log))
    return evidence


def _attempt(evidence: Evidence, name: str, read: Callable[[str], T]) -> T | None:
    """What `read` makes of a file that is there; None, and a note why, if it cannot."""
    if name not in evidence.folder.sizes:
        return None
    try:
        return read(name)
    except (Unreadable, UserError, Broken) as problem:
        evidence.problems[name] = problem
        return None
