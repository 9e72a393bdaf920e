"""From words on the command line to typed arguments; every mistake is one line."""

import contextlib
import dataclasses
import hashlib
import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from pargolf.config.presets import PUBLISHED, known_names, load_preset, preset_names, validated
from pargolf.config.schema import (
    DataConfig,
    EvalConfig,
    ExportConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from pargolf.config.settings import docstrings, flatten, read_config, to_dict
from pargolf.system.errors import UserError

T = TypeVar("T")
A = TypeVar("A", bound="RunArgs")
# An option whose help says in words what its default is, so that tyro need not print "(default: None)".
IN_WORDS = tyro.conf.arg(help_behavior_hint="")
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH"), IN_WORDS]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT"), IN_WORDS]
OptionalInt = Annotated[int, IN_WORDS]
OptionalText = Annotated[str, IN_WORDS]
Paths = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH..."), IN_WORDS]

LONGEST_NAME = 100  # characters of a run's default name, before a hash of its settings replaces the list


@dataclass
class RunArgs:
    """PRESET is a preset, or one with overlays laid over it: demo+legendre-mix. Options change its settings.

    The defaults below are those of PRESET; of the published system, if none is named.
    """

    preset: tyro.conf.Positional[str]
    """PRESET+OVERLAY+..., such as demo+legendre-mix; each a name or a path to a TOML file."""
    name: OptionalText = ""
    """Name of the folder to make; default: the preset and what was changed."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    own_data: Annotated[OptionalText, tyro.conf.arg(name="data", metavar="NAME")] = ""
    """Dataset of `pargolf data`, by its name or folder: sets dataset, tokenizer and vocabulary together."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def config(self) -> RunConfig:
        parts = (self.model, self.data, self.train, self.optim, self.export, self.eval)
        return RunConfig(*parts, preset=self.preset)

    @property
    def folder(self) -> Path:
        return self.runs / (self.name or self._default_name())

    @property
    def _purpose(self) -> tuple[str, ...]:
        """What a command with options of its own adds to the default name."""
        return ()

    def _default_name(self) -> str:
        stack = "+".join(Path(name).stem for name in self.preset.split("+"))
        preset = load_preset(self.preset)
        if self.own_data:
            where = ("dataset", "tokenizer", "corpus")
            preset = replace(
                preset,
                data=replace(preset.data, **{name: getattr(self.data, name) for name in where}),
                model=replace(preset.model, vocab_size=self.model.vocab_size),
            )
        base, mine = (flatten(to_dict(config)) for config in (preset, self.config))
        changes = [f"{name.split('.')[1]}={value}" for name, value in mine.items() if value != base[name]]
        data = [Path(self.own_data).name] if self.own_data else []
        name = "-".join([stack, *data, *changes, *self._purpose]).replace("/", "_")
        if len(name) <= LONGEST_NAME:
            return name
        everything = json.dumps(mine, sort_keys=True) + "".join(self._purpose)
        digest = hashlib.sha256(everything.encode()).hexdigest()
        return f"{stack}-{digest[:10]}"


@dataclass
class TrainArgs(RunArgs):
    """Train PRESET, or go on with a run whose folder is named instead. Options change the settings.

    PRESET is a preset, or one with overlays laid over it: demo+legendre-mix.
    """

    extend: bool = False
    """Go on with a finished run, to more --train.iterations or --train.max-seconds than it had."""

    @property
    def folder(self) -> Path:
        return Path(self.preset) if is_run(self.preset) else super().folder

    @property
    def config(self) -> RunConfig:
        config = super().config
        if not is_run(self.preset):
            return config
        return replace(config, preset=read_config(Path(self.preset) / "config.json").preset)


def is_run(name: str) -> bool:
    """Whether a run's folder is named instead of a preset."""
    return name not in preset_names() and (Path(name) / "config.json").is_file()


def run_args(argv: list[str], command: str) -> RunArgs:
    """Parse `PRESET[+OVERLAY...] [--name ...] [--section.field value ...]` on top of the stack's values."""
    return preset_args(RunArgs, argv, command)


def preset_args(kind: type[A], argv: list[str], command: str) -> A:
    """The same for a command with options of its own, `kind`."""
    prog = f"pargolf {command} PRESET"
    if argv[:1] in (["-h"], ["--help"]):
        argv = [PUBLISHED, *argv]
    if not argv or argv[0].startswith("-"):
        raise UserError(f"name a preset first: pargolf {command} PRESET[+OVERLAY...] ... ({known_names()})")
    goes_on = issubclass(kind, TrainArgs) and is_run(argv[0])
    base = read_config(Path(argv[0]) / "config.json") if goes_on else load_preset(argv[0])
    args = parse(kind, argv, prog, kind(**{f.name: getattr(base, f.name) for f in dataclasses.fields(base)}))
    if args.own_data:
        args = with_dataset(args, args.own_data)
    validated(args.config)
    return args


def with_dataset(args: A, name: str) -> A:
    """`args` with a dataset of `pargolf data` instead of the preset's; UserError as `find_dataset`."""
    from pargolf.data.record import find_dataset
    from pargolf.data.tokenizer import Tokenizer

    dataset, tokenizer = find_dataset(name, Path("data"))
    data = replace(args.data, dataset=str(dataset), tokenizer=str(tokenizer), corpus="none")
    return replace(args, data=data, model=replace(args.model, vocab_size=Tokenizer(tokenizer).vocab_size))


def _explain(kind: Any) -> None:
    """Give tyro the help of each option in one piece: it would keep a docstring's line breaks."""
    words = {name: text for each in reversed(kind.__mro__[:-1]) for name, text in docstrings(each).items()}
    for option in dataclasses.fields(kind):
        option.metadata = MappingProxyType({"help": words.get(option.name)})
    for section in get_type_hints(kind).values():
        if dataclasses.is_dataclass(section):
            _explain(section)


def parse(kind: type[T], argv: list[str], prog: str, default: T | None = None) -> T:
    """`argv` as a dataclass; a mistake becomes a UserError of one line, help goes to stdout."""
    complaint = io.StringIO()
    if {"-h", "--help"} & set(argv):
        _explain(kind)
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
    hint = f"; did you mean {hints[0]}?" if hints and hints[0] not in message else ""
    return f"{message}{hint} (see {prog} --help)"
