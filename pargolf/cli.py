"""The command line: one function a command, no logic beyond reading arguments and printing results."""

import contextlib
import dataclasses
import hashlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import tyro

from pargolf import launch
from pargolf.config import (
    DataConfig,
    EvalConfig,
    ExportConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    load_preset,
    preset_names,
    to_dict,
    validate,
)
from pargolf.errors import Stopped, UserError

# PyTorch is imported inside the commands that need it, so that help and mistakes answer at once.

T = TypeVar("T")
LONGEST_NAME = 100  # characters of a run's default name, before a hash of its settings replaces the list


@dataclass
class DataArgs:
    """Turn text into a tokenizer and shards: the embedded articles, or files of your own."""

    text: tuple[Path, ...] = ()
    """Files to use instead of the embedded articles: .jsonl (field "text", one document a line) or plain
    UTF-8 text (one document a file)."""
    separator: str = ""
    """Where plain text files are cut into documents, for example "<|endoftext|>"."""
    name: str = ""
    """Name of the dataset; default: "demo", or the first file's."""
    vocab_size: int = 1024
    """Pieces of the tokenizer, trained on the training documents alone."""
    val_fraction: float = 0.1
    """Share of the documents held out, chosen by their hash."""
    root: Path = Path("data")
    """Folder for tokenizers/ and datasets/."""


@dataclass
class FinewebArgs:
    """Download the challenge's published shards and tokenizer; continues where it was interrupted."""

    variant: str = "sp1024"
    """Tokenization, as the dataset's folder is named after fineweb10B_."""
    train_shards: int = 1
    """How many training shards of 100,000,000 tokens."""
    root: Path = Path("data")


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

    def _default_name(self) -> str:
        base, mine = to_dict(load_preset(self.preset)), to_dict(self.config)
        changes = [
            f"{name}={value}".replace("/", "_")
            for section, fields in mine.items()
            for name, value in fields.items()
            if value != base[section][name]
        ]
        name = "-".join([Path(self.preset).stem, *changes])
        if len(name) <= LONGEST_NAME:
            return name
        digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
        return f"{Path(self.preset).stem}-{digest[:10]}"


@dataclass
class PackArgs:
    """Quantize and compress a trained run into model.pgz, and show where every byte went."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""


@dataclass
class EvalArgs:
    """Score an artifact as read back from disk: val_bpb by rows and by the sliding window."""

    target: tyro.conf.Positional[Path]
    """A run's folder or a model.pgz."""
    stride: int = 0
    """Tokens each window scores; default: the run's setting, else 64."""
    batch_rows: int = 0
    """Windows scored at once; default: the run's setting, else 32."""
    tokenizer: Path | None = None
    """Tokenizer of an artifact outside its run folder."""
    dataset: Path | None = None
    """Folder of the validation shards; default: the run's."""


@dataclass
class SampleArgs:
    """Continue a prompt with an artifact's model."""

    artifact: tyro.conf.Positional[Path]
    """A model.pgz or a run's folder."""
    prompt: tyro.conf.Positional[str]
    tokens: int = 128
    """Tokens to add."""
    temperature: float = 0.8
    """0 takes the likeliest token each time."""
    top_k: int = 50
    """Draw among this many likeliest tokens; 0 means all."""
    seed: int = 0
    tokenizer: Path | None = None
    """Tokenizer of an artifact outside its run folder."""


def data(argv: list[str]) -> None:
    """Make or download tokens: embedded articles, your own text, or FineWeb."""
    if argv[:1] == ["fineweb"]:
        from pargolf.data.fineweb import download

        fineweb = _parse(FinewebArgs, argv[1:], "pargolf data fineweb")
        download(fineweb.variant, fineweb.train_shards, fineweb.root)
        print(f"{fineweb.root}/datasets/fineweb10B_{fineweb.variant}: {fineweb.train_shards} training shards")
        return
    from pargolf.data.prepare import prepare_embedded, prepare_files

    # "tokenize" names the step that the plain command does as well.
    argv = argv[1:] if argv[:1] == ["tokenize"] else argv
    args = _parse(DataArgs, argv, "pargolf data [tokenize | fineweb]")
    if args.text:
        name = args.name or args.text[0].stem
        done = prepare_files(
            name, args.text, args.vocab_size, args.val_fraction, args.separator or None, args.root
        )
    else:
        done = prepare_embedded(args.vocab_size, args.val_fraction, args.root)
    print(done.summary())


def plan(argv: list[str]) -> None:
    """Parameters, arithmetic, bytes and memory of a preset, before training."""
    from pargolf import plan as planning
    from pargolf import tables

    args = _run_args(argv, "plan")
    tables.show_plan(args.preset, args.config, planning.plan(args.config))


def train(argv: list[str]) -> None:
    """Train a preset into runs/<name>/; continues a run that was interrupted."""
    from pargolf import train as training
    from pargolf.pipeline import prepare_data

    args = _run_args(argv, "train")
    prepare_data(args.config)
    training.train(args.config, args.folder)


def pack(argv: list[str]) -> None:
    """Quantize and compress a trained run into model.pgz, with its byte ledger."""
    from pargolf import tables
    from pargolf.pipeline import check_run_budget, pack_run

    args = _parse(PackArgs, argv, "pargolf pack")
    sizes = pack_run(args.run)
    tables.show_ledger(sizes)
    check_run_budget(args.run, sizes)


def evaluate(argv: list[str]) -> None:
    """Score an artifact from disk alone: val_bpb, standard and sliding."""
    from pargolf import tables
    from pargolf.pipeline import eval_run, find_target

    args = _parse(EvalArgs, argv, "pargolf eval")
    target = find_target(args.target, args.tokenizer, args.dataset)
    settings = target.config.eval if target.config else EvalConfig()
    settings = dataclasses.replace(
        settings, stride=args.stride or settings.stride, batch_rows=args.batch_rows or settings.batch_rows
    )
    tables.show_result(eval_run(target, settings))


def run(argv: list[str]) -> None:
    """All of it: train, pack, eval, and the table of results."""
    from pargolf import tables
    from pargolf.console import console
    from pargolf.pipeline import check_run_budget, run_all

    args = _run_args(argv, "run")
    sizes, result = run_all(args.config, args.folder)
    tables.show_ledger(sizes)
    tables.show_result(result)
    check_run_budget(args.folder, sizes)
    console.print(f'next: pargolf sample {args.folder}/model.pgz "The city"', highlight=False)


def sample(argv: list[str]) -> None:
    """Continue a prompt with an artifact's model."""
    from pargolf.pipeline import find_target, load_model, open_artifact
    from pargolf.sample import continue_text

    args = _parse(SampleArgs, argv, "pargolf sample")
    artifact, tokenizer = open_artifact(find_target(args.artifact, args.tokenizer))
    model = load_model(artifact)
    for piece in continue_text(
        model, tokenizer, args.prompt, args.tokens, args.temperature, args.top_k, args.seed
    ):
        print(piece, end="", flush=True)
    print()


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "data": data,
    "plan": plan,
    "train": train,
    "pack": pack,
    "eval": evaluate,
    "run": run,
    "sample": sample,
}


def main() -> None:
    """Entry point of `pargolf`: exit code 0, 2 for bad input, 128 + n when stopped by signal n."""
    sys.exit(dispatch(sys.argv[1:]))


def dispatch(argv: list[str]) -> int:
    """Run one command line; returns its exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"no command '{argv[0]}'; there are: {', '.join(COMMANDS)}")
        COMMANDS[argv[0]](argv[1:])
        return 0
    except UserError as error:
        return _fail(str(error))
    except Stopped as stop:
        _fail(str(stop), "stopped")
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # a full disk, a folder without permission
        return _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))


def _fail(message: str, kind: str = "error") -> int:
    if launch.is_main():  # the other ranks failed the same way
        print(f"pargolf: {kind}: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {_first_line(function)}" for name, function in COMMANDS.items()]
    return "\n".join(
        ["usage: pargolf COMMAND ... (--help after a command for its options)", "", *lines, "",
         f"presets: {', '.join(preset_names())}"]
    )  # fmt: skip


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").splitlines()[0]


def _run_args(argv: list[str], command: str) -> RunArgs:
    """Parse `PRESET [--name ...] [--section.field value ...]` on top of the preset's values."""
    prog = f"pargolf {command} PRESET"
    if argv[:1] in (["-h"], ["--help"]):
        argv = ["lowrank-q192", *argv]
    if not argv or argv[0].startswith("-"):
        raise UserError(
            f"name a preset first: pargolf {command} PRESET ...; presets: {', '.join(preset_names())}"
        )
    base = load_preset(argv[0])
    sections = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    args = _parse(RunArgs, argv, prog, RunArgs(argv[0], **sections))
    validate(args.config)
    return args


def _parse(kind: type[T], argv: list[str], prog: str, default: T | None = None) -> T:
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
