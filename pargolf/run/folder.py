"""A run's folder: the files in it, and how they are written and read."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pargolf.config.schema import RunConfig
from pargolf.config.settings import flatten, read_config, to_dict, with_settings
from pargolf.system.console import console, say
from pargolf.system.errors import UserError
from pargolf.system.files import write_json


@dataclass(frozen=True)
class Run:
    """The folder `runs/<name>/`; whatever is done to a run reads this folder and nothing else."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config(self) -> Path:
        """Every setting, resolved."""
        return self.folder / "config.json"

    @property
    def imported(self) -> Path:
        """In the place of a config: the settings that somebody else's log names."""
        return self.folder / "imported.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: losses by step. The same seed gives the same file."""
        return self.folder / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        """One JSON object a line: seconds of training by step, which no seed repeats."""
        return self.folder / "timing.jsonl"

    @property
    def log(self) -> Path:
        """What a person reads."""
        return self.folder / "train.log"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def tokenizer(self) -> Path:
        """A copy of the run's tokenizer, so that the folder can be moved."""
        return self.folder / "tokenizer.model"

    @property
    def artifact(self) -> Path:
        return self.folder / "model.pgz"

    @property
    def result(self) -> Path:
        """Figures of the finished run."""
        return self.folder / "result.json"

    @property
    def analysis(self) -> Path:
        """What `pargolf analyze` found: an `analysis.weights.Analysis` as JSON."""
        return self.folder / "analysis.json"

    @property
    def analysis_plot(self) -> Path:
        return self.folder / "analysis.svg"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files, with `train.track`."""
        return self.folder / "tensorboard"

    @property
    def wandb_id(self) -> Path:
        """The run's id at Weights & Biases, under which it goes on."""
        return self.folder / "wandb-id"

    @property
    def compile_cache(self) -> Path:
        return self.folder / "compile-cache"


def open_run(folder: Path) -> tuple[Run, RunConfig]:
    """An existing run and its settings; UserError if `folder` is not one."""
    run = Run(folder)
    return run, read_config(run.config)


def start_run(folder: Path, config: RunConfig, may_differ: frozenset[str] = frozenset()) -> Run:
    """Create the run's folder, or reopen it to continue.

    UserError if it belongs to other settings than `config` and those that it `may_differ` in.
    """
    run = Run(folder)
    if run.config.exists():
        settings = flatten(to_dict(config))
        existing = with_settings(read_config(run.config), {name: settings[name] for name in may_differ})
        if existing != config:
            raise UserError(
                f"{folder} holds a run with other settings ({first_difference(existing, config)});"
                " choose another --name or remove it"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.tmp"):  # of a write that was killed
            leftover.unlink()
        write_json(run.config, to_dict(config))
    except OSError as error:
        raise UserError(f"cannot write to run folder {folder}: {error.strerror or error}") from None
    return run


def set_aside(run: Run, step: int) -> None:
    """Rename artifact and score of a run that goes on from `step`: they are not of what it becomes."""
    for path in (run.artifact, run.result):
        if path.exists():
            path.rename(path.with_stem(f"{path.stem}-{step}"))


def first_difference(a: RunConfig, b: RunConfig) -> str:
    """Where the settings `b` ("here") first differ from `a` ("there"), in words."""
    left, right = flatten(to_dict(a)), flatten(to_dict(b))
    return next(
        f"{name} is {left[name]} there, {value} here" for name, value in right.items() if left[name] != value
    )


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as one line; ValueError on numbers that JSON has no word for.

    A line that a killed process left unfinished is closed first, so that it stays one bad line.
    """
    line = json.dumps(record, allow_nan=False) + "\n"
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every record of a .jsonl file in the order of its steps; lines of anything but numbers are skipped.

    A resumed run writes steps after its checkpoint again: the last record of a step counts.
    """
    if not path.exists():
        return []
    latest = {(r["step"], *sorted(r)): r for r in _records(path.read_bytes())}
    return sorted(latest.values(), key=lambda record: record["step"])


def _records(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if (
            isinstance(record, dict)
            and type(record.get("step")) is int
            and all(map(_is_number, record.values()))
        ):
            yield record


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


class Log:
    """Lines for a person: on the terminal and in train.log; silent on all ranks but the first."""

    def __init__(self, path: Path | None):
        self.path, self._writes = path, True

    def __call__(self, line: str) -> None:
        if self.path is None:
            return
        # Through the console, so that a progress bar moves out of the way; unwrapped, for a log.
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        if self._writes:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError as error:  # what is shown is not lost, and worth more than the log
                self._writes = False
                say(f"{self.path} is not written any more: {error.strerror or error}")
