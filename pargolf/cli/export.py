"""The commands that take a model elsewhere: one function a command, no logic."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pargolf.cli.parse import OptionalPath, parse


@dataclass
class ExportArgs:
    """Write an artifact's model as a folder that other programs load."""

    run: tyro.conf.Positional[Path]
    """A run's folder or a model.pgz."""
    format: Literal["huggingface", "safetensors"]
    """"huggingface": for AutoModelForCausalLM and AutoTokenizer of transformers, code and model card with it;
    "safetensors": float32 weights, the model's settings and the tokenizer."""
    out: Annotated[OptionalPath, tyro.conf.arg(aliases=["-o"])] = None
    """Folder to write; default: exports/<run>-<format>."""
    tokenizer: OptionalPath = None
    """Tokenizer of an artifact outside its run folder."""


def export(argv: list[str]) -> None:
    """Write the model as a folder for transformers, or as plain safetensors."""
    args = parse(ExportArgs, argv, "pargolf export")
    from pargolf.huggingface.folder import export_target
    from pargolf.run.target import find_target

    print(export_target(find_target(args.run, args.tokenizer), args.format, args.out))
