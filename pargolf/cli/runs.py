"""The commands that make a run: one function a command, no logic beyond reading arguments and printing."""

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pargolf.challenge import GPUS
from pargolf.cli.parse import (
    IN_WORDS,
    OptionalFloat,
    OptionalInt,
    OptionalPath,
    OptionalText,
    Paths,
    RunArgs,
    TrainArgs,
    is_run,
    parse,
    preset_args,
    run_args,
)
from pargolf.config.presets import origins
from pargolf.config.schema import EvalConfig, ExportConfig
from pargolf.config.settings import read_config, to_toml, with_codec
from pargolf.config.validation import validate_world
from pargolf.system.errors import require

# Commands import what they need after their arguments are read, so that help and mistakes answer at once.


@dataclass
class DataArgs:
    """Turn text into a tokenizer and shards: the embedded articles, or files of your own.

    `pargolf data fineweb` downloads the challenge's shards instead.
    """

    text: Paths = ()
    """Files and folders to use instead of the embedded articles: .jsonl (field "text", one document a
    line), .parquet (column "text", one a row) or plain UTF-8 text (.txt, .md: one document a file); each
    also as .gz, .zst, .xz or .bz2."""
    separator: Annotated[str | None, tyro.conf.arg(metavar="STR"), IN_WORDS] = None
    """Where plain text is cut into documents, for example "<|endoftext|>" or "\\n\\n"; default: not at all,
    but a single file at its empty lines."""
    name: OptionalText = ""
    """Name of the dataset; default: the first file's. The embedded articles are called "demo"."""
    vocab_size: int = 1024
    """Pieces of the tokenizer, trained on the training documents alone."""
    tokenizer: OptionalPath = None
    """SentencePiece model to use instead of training one."""
    transform: Literal["none", "caseops", "caseops-fused"] = "none"
    """What the text goes through before the tokenizer: CaseOps writes capitals as operators before lower-case
    words; fused, a space and the operator after it are one piece. Scores are of the original text. With
    --tokenizer: the one that its pieces show."""
    val: Paths = ()
    """Files and folders of validation text; default: a share of the documents is held out."""
    val_fraction: float = 0.1
    """Share of the documents held out for validation, chosen by their hash."""
    val_bytes: int = 2_000_000
    """Most bytes of text held out; 0: no limit. Each score reads all of it."""
    root: Path = Path("data")
    """Folder for tokenizers/ and datasets/."""
    overwrite: bool = False
    """Replace another dataset of that name."""


@dataclass
class FinewebArgs:
    """Download the challenge's published shards and tokenizer; continues where it was interrupted."""

    variant: str = "sp1024"
    """Tokenizer of the shards: sp1024, sp4096, sp8192, or caseops, of 8192 pieces and text whose capitals are
    operators."""
    train_shards: int = 1
    """How many training shards of 100,000,000 tokens."""
    repo: OptionalText = ""
    """Repository at Hugging Face; default: the challenge's, or the one that has the variant."""
    root: Path = Path("data")
    """Folder for tokenizers/ and datasets/."""


@dataclass
class PlanArgs(RunArgs):
    """What PRESET costs, before any training: parameters, arithmetic, bytes, memory and time.

    PRESET is a preset, or one with overlays laid over it: demo+legendre-mix. Options change its settings.
    """

    price: OptionalFloat = None
    """USD an hour for the machine with eight GPUs, all together; the table then says what a run costs."""


@dataclass
class PackArgs:
    """Quantize and compress a trained run into model.pgz, and show where every byte went.

    The defaults of --export.NAME are those of the run.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    codec: Annotated[
        Literal["", "zstd", "zlib", "brotli", "lzma", "auto"],
        tyro.conf.arg(metavar="{zstd,zlib,brotli,lzma,auto}"),
        IN_WORDS,
    ] = ""
    """Another codec than the run's settings name, at its highest level; "auto" takes whichever makes file
    and code smallest."""
    layout: Annotated[
        Literal["", "bytes", "planes", "range", "auto"],
        tyro.conf.arg(metavar="{bytes,planes,range,auto}"),
        IN_WORDS,
    ] = ""
    """Another layout than the run's settings name (see docs/formats.md)."""
    fit: Annotated[int | None, tyro.conf.arg(metavar="INT"), IN_WORDS] = None
    """Bytes of code and model to fill: training text decides how finely each row is rounded."""
    max_loss: OptionalFloat = None
    """Instead of --fit: make the smallest file that loses at most so many bits per byte of training text."""
    dataset: OptionalPath = None
    """Folder of the training shards that --fit and --max-loss read; default: the run's."""
    export: ExportConfig = field(default_factory=ExportConfig)


@dataclass
class EvalArgs:
    """Score an artifact as read back from disk: val_bpb by rows, by the sliding window, and as it learns.

    The defaults of --eval.NAME are those of the run.
    """

    target: tyro.conf.Positional[Path]
    """A run's folder or a model.pgz."""
    stride: Annotated[int | Literal["auto"], IN_WORDS] = 0
    """Tokens each window scores; default: the run's setting, else 64. "auto" only shows, on a sample,
    what strides from 1024 to 64 score and cost."""
    batch_rows: OptionalInt = 0
    """Windows scored at once; default: the run's setting, else 32."""
    tokenizer: OptionalPath = None
    """Tokenizer of an artifact outside its run folder."""
    dataset: OptionalPath = None
    """Folder of the validation shards; default: the run's."""
    eval: EvalConfig = field(default_factory=EvalConfig)


@dataclass
class SampleArgs:
    """Continue a prompt with an artifact's model."""

    artifact: tyro.conf.Positional[Path]
    """A model.pgz or a run's folder."""
    prompt: tyro.conf.Positional[str]
    """The text to continue."""
    tokens: int = 128
    """Tokens to add."""
    temperature: float = 0.8
    """0 takes the likeliest token each time."""
    top_k: int = 50
    """Draw among this many likeliest tokens; 0 means all."""
    seed: int = 0
    """Random seed of the draws: the same seed gives the same text."""
    tokenizer: OptionalPath = None
    """Tokenizer of an artifact outside its run folder."""


@dataclass
class ListArgs:
    """Show the runs of a folder, and of the studies in it: how far each is, its score and its bytes."""

    folder: tyro.conf.Positional[Path] = Path("runs")
    """The folder to look in."""


def data(argv: list[str]) -> None:
    """Make or download tokens: embedded articles, your own text, or FineWeb."""
    if argv[:1] == ["fineweb"]:
        fineweb = parse(FinewebArgs, argv[1:], "pargolf data fineweb")
        from pargolf.data.fineweb import download

        dataset = download(fineweb.variant, fineweb.train_shards, fineweb.root, fineweb.repo)
        print(f"{dataset}: {fineweb.train_shards} training shards")
        return
    require(argv[:1] != ["tokenize"], "there is no `tokenize`: write `pargolf data`")
    args = parse(DataArgs, argv, "pargolf data [fineweb]")
    from pargolf.data.files import text_files
    from pargolf.data.prepare import prepare_embedded, prepare_files
    from pargolf.system.console import Bar

    if args.text:
        done = prepare_files(
            text_files(args.text, args.separator), args.name, args.vocab_size, args.val_fraction,
            args.val_bytes, text_files(args.val, args.separator) if args.val else None, args.tokenizer,
            args.root, args.overwrite, partial(Bar, in_bytes=True), args.transform,
        )  # fmt: skip
    else:
        only = ("separator", "name", "tokenizer", "val", "val_bytes")
        given = [name for name in only if getattr(args, name) != getattr(DataArgs(), name)]
        require(
            not given,
            f"--{', --'.join(given).replace('_', '-')}: only with --text, not for the embedded articles",
        )
        done = prepare_embedded(args.vocab_size, args.val_fraction, args.root, args.overwrite, args.transform)
    print(done.summary())
    print(f"next: pargolf run demo --data {done.dataset.name if args.root == Path('data') else done.dataset}")


def plan(argv: list[str]) -> None:
    """Parameters, arithmetic, bytes, memory, time and price of a preset, before training."""
    args = preset_args(PlanArgs, argv, "plan")
    if args.price is not None:
        require(0 < args.price < math.inf, f"--price must be above 0, is {args.price}")
        validate_world(args.config, GPUS)
    from pargolf.bundle.single_file import code_bytes
    from pargolf.cli import tables
    from pargolf.plan import cost as planning
    from pargolf.plan.forecast import forecasts
    from pargolf.plan.needs import needs
    from pargolf.plan.scoring import scoring_tokens, validation_at_hand

    cost, expected = planning.plan(args.config, code_bytes(args.config)), forecasts(args.config)
    tables.show_plan(args.preset, args.config, cost, expected)
    if (text := validation_at_hand(args.config)) is not None:
        tables.show_scoring(args.config, scoring_tokens(args.config, text), expected)
    if expected[0].gpus == GPUS:
        tables.show_needs(expected[0].machine, needs(args.config, expected[0]), args.price)


def config(argv: list[str]) -> None:
    """Every setting of a preset with its overlays, as a TOML file that can stand in for it."""
    args = run_args(argv, "config")
    print("# Every setting; a comment names the file or the option that changes a default.")
    print(to_toml(args.config, origins(args.config)), end="")


def train(argv: list[str]) -> None:
    """Train a preset into runs/<name>/; continues a run that was interrupted."""
    args = preset_args(TrainArgs, argv, "train")
    require(
        not args.extend or is_run(args.preset),
        f"--extend goes on with a finished run: name its folder, and not {args.preset}",
    )
    from pargolf.train import runs

    runs.train(args.config, args.folder, args.extend)


def pack(argv: list[str]) -> None:
    """Quantize and compress a trained run into model.pgz, with its byte ledger."""
    args = parse(PackArgs, argv, "pargolf pack")
    default = PackArgs(args.run, export=read_config(args.run / "config.json").export)
    args = parse(PackArgs, argv, "pargolf pack", default)
    from pargolf.bundle.single_file import code_bytes
    from pargolf.cli import tables
    from pargolf.fit.budget import check_budget
    from pargolf.train import runs

    export = with_codec(args.export, args.codec, args.layout)
    sizes = runs.pack(args.run, code_bytes, export, args.fit, args.max_loss, args.dataset)
    tables.show_ledger(sizes)
    check_budget(sizes, export.budget)


def evaluate(argv: list[str]) -> None:
    """Score an artifact from disk alone: val_bpb, standard and sliding."""
    args = parse(EvalArgs, argv, "pargolf eval")
    config = (args.target if args.target.is_dir() else args.target.parent) / "config.json"
    if config.is_file():
        default = EvalArgs(args.target, eval=read_config(config).eval)
        args = parse(EvalArgs, argv, "pargolf eval", default)
    from pargolf.bundle.single_file import code_bytes
    from pargolf.cli import tables
    from pargolf.run.target import find_target
    from pargolf.train import runs

    target = find_target(args.target, args.tokenizer, args.dataset)
    settings = args.eval
    batch_rows = args.batch_rows or settings.batch_rows
    if args.stride == "auto":
        tables.show_strides(runs.try_strides(target, batch_rows))
        return
    settings = dataclasses.replace(settings, stride=args.stride or settings.stride, batch_rows=batch_rows)
    tables.show_result(runs.evaluate(target, settings, code_bytes))


def run(argv: list[str]) -> None:
    """Train, pack and eval in one go, with the tables of bytes and scores."""
    args = run_args(argv, "run")
    from pargolf.bundle.single_file import code_bytes
    from pargolf.cli import tables
    from pargolf.fit.budget import check_budget, ledger
    from pargolf.run.folder import Run
    from pargolf.system.console import say
    from pargolf.train import runs

    result = runs.train_pack_and_score(args.config, args.folder, code_bytes)
    sizes = ledger(Run(args.folder).artifact.read_bytes(), result["bytes_code"])
    tables.show_ledger(sizes)
    tables.show_result(result)
    check_budget(sizes, args.config.export.budget)
    say(f'next: pargolf report {args.folder}, or pargolf sample {args.folder} "The city"')


def show_list(argv: list[str]) -> None:
    """Which runs there are: state, steps, val_bpb, bytes, when."""
    args = parse(ListArgs, argv, "pargolf list")
    from pargolf.cli.study_tables import show_runs
    from pargolf.run.listing import list_runs

    show_runs(list_runs(args.folder))


def sample(argv: list[str]) -> None:
    """Continue a prompt with an artifact's model."""
    args = parse(SampleArgs, argv, "pargolf sample")
    from pargolf.run.target import find_target, load_model
    from pargolf.score.sample import continue_text
    from pargolf.system.escape import visible

    artifact, tokenizer = find_target(args.artifact, args.tokenizer).open()
    model = load_model(artifact)
    for piece in continue_text(
        model, tokenizer, args.prompt, args.tokens, args.temperature, args.top_k, args.seed
    ):
        # A terminal would obey control characters, which a model may write as bytes.
        print(visible(piece, "\n") if sys.stdout.isatty() else piece, end="", flush=True)
    print()
