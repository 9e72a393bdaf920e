"""From words on the command line to typed arguments; every mistake is one line."""

import contextlib
import dataclasses
import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import tyro

from pargolf.config.presets import load_preset, preset_names
from pargolf.config.schema import (
    DataConfig,
    EvalConfig,
    ExportConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    validate,
)
from pargolf.config.settings import to_dict
from pargolf.system.errors import UserError

T = TypeVar("T")
A = TypeVar("A", bound="RunArgs")
LONGEST_NAME = 100  # characters of a run's default name, before a hash of its settings replaces the list


@dataclass
class RunArgs:
    """A preset, or a TOML file of that form, with any of its fields changed."""

    preset: tyro.conf.Positional[str]
    name: str = ""
    """Name of the run's folder; default: the preset and what was changed."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def config(self) -> RunConfig:
        return RunConfig(self.model, self.data, self.train, self.optim, self.export, self.eval)

    @property
    def folder(self) -> Path:
        return self.runs / (self.name or self._default_name())

    @property
    def _purpose(self) -> tuple[str, ...]:
        """What a command with options of its own adds to the default name."""
        return ()

    def _default_name(self) -> str:
        base, mine = to_dict(load_preset(self.preset)), to_dict(self.config)
        changes = [
            f"{name}={value}"
            for section, fields in mine.items()
            for name, value in fields.items()
            if value != base[section][name]
        ]
        name = "-".join([Path(self.preset).stem, *changes, *self._purpose]).replace("/", "_")
        if len(name) <= LONGEST_NAME:
            return name
        everything = json.dumps(mine, sort_keys=True) + "".join(self._purpose)
        digest = hashlib.sha256(everything.encode()).hexdigest()
        return f"{Path(self.preset).stem}-{digest[:10]}"


def run_args(argv: list[str], command: str) -> RunArgs:
    """Parse `PRESET [--name ...] [--section.field value ...]` on top of the preset's values."""
    return preset_args(RunArgs, argv, command)


def preset_args(kind: type[A], argv: list[str], command: str) -> A:
    """The same for a command with options of its own, `kind`."""
    prog = f"pargolf {command} PRESET"
    if argv[:1] in (["-h"], ["--help"]):
        argv = ["lowrank-q192", *argv]
    if not argv or argv[0].startswith("-"):
        raise UserError(
            f"name a preset first: pargolf {command} PRESET ...; presets: {', '.join(preset_names())}"
        )
    base = load_preset(argv[0])
    sections = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    args = parse(kind, argv, prog, kind(argv[0], **sections))
    validate(args.config)
    return args


def parse(kind: type[T], argv: list[str], prog: str, default: T | None = None) -> T:
    """`argv` as a dataclass; a mistake becomes a UserError of one line, help goes to stdout."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            if default is None:
                return tyro.cli(kind, args=argv, prog=prog)
            return tyro.cli(kind, args=argv, prog=prog, default=default)
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise UserError(_one_line(complaint.getvalue(), prog)) from None


def _one_line(box: str, prog: str) -> str:
    """What is wrong, and the nearest option, out of the box that tyro draws (title, message, hints)."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    parts: list[list[str]] = [[]]
    for line in lines:
        if line and not line.strip("─-"):  # a rule between two parts
            parts.append([])
        else:
            parts[-1].append(line)
    if "╭" not in box:  # without Unicode the title is a part of its own
        parts = parts[1:]
    message = " ".join(" ".join(parts[0]).split())
    hints = [line.split()[0] for part in parts[1:] for line in part if line.startswith("--")]
    hint = f"; perhaps {hints[0]}" if hints and hints[0] not in message else ""
    return f"{message}{hint} (see {prog} --help)"
