"""The commands that make any file smaller by an artifact's model, and bring it back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pargolf.cli.parse import OptionalPath, parse

Output = Annotated[Path, tyro.conf.arg(aliases=["-o"])]


@dataclass
class CompressArgs:
    """Compress any file without loss by a model's next-token distributions, on the CPU."""

    file: tyro.conf.Positional[Path]
    """The file to compress."""
    model: Path
    """A run's folder or a model.pgz; decompressing needs the same."""
    out: Output
    """The file to write; its name usually ends in .pgc."""
    streams: int = 0
    """Parts of the file coded side by side; more are faster and cost a few bytes each. 0: by its size."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format that the model computes in; auto: as the run did, float32 for an artifact outside its
    run folder."""
    threads: int = 0
    """CPU threads; decompressing takes as many. 0: PyTorch's choice."""
    adapt: bool = False
    """Learn from what has been coded: smaller, many times slower, and for this very machine."""
    verify: bool = True
    """Decode and compare before the file is written."""
    tokenizer: OptionalPath = None
    """Tokenizer of an artifact outside its run folder."""


@dataclass
class DecompressArgs:
    """Bring back the file that `pargolf compress` made smaller."""

    file: tyro.conf.Positional[Path]
    """The compressed file."""
    model: Path
    """The run's folder or model.pgz it was compressed with."""
    out: Output
    """The file to write."""
    tokenizer: OptionalPath = None
    """Tokenizer of an artifact outside its run folder."""


def compress(argv: list[str]) -> None:
    """Make any file smaller, without loss, by an artifact's model."""
    args = parse(CompressArgs, argv, "pargolf compress")
    from pargolf.cli import tables
    from pargolf.compress.files import compress_file
    from pargolf.run.target import find_target
    from pargolf.study.records import read_record

    target = find_target(args.model, args.tokenizer)
    record = read_record(target.run.folder) if target.run and target.run.result.exists() else None
    report = compress_file(
        args.file, args.out, target, args.streams, args.dtype, args.threads, args.verify, args.adapt
    )
    tables.show_compressed(report, record)


def decompress(argv: list[str]) -> None:
    """Bring back a file made smaller by `pargolf compress`."""
    args = parse(DecompressArgs, argv, "pargolf decompress")
    from pargolf.cli import tables
    from pargolf.compress.files import decompress_file
    from pargolf.run.target import find_target

    tables.show_restored(decompress_file(args.file, args.out, find_target(args.model, args.tokenizer)))
