"""The commands between a finished run and the challenge: one function a command, no logic."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from pargolf.cli.parse import parse
from pargolf.config import EvalConfig


@dataclass
class VerifyArgs:
    """Try on the running model what makes a score valid; exit code 2 if a condition does not hold."""

    artifact: tyro.conf.Positional[Path]
    """A model.pgz or a run's folder; with --module, whatever file its load() reads."""
    module: Path | None = None
    """Python file with load(artifact_path) that returns a model of your own (see docs/verify.md)."""
    positions: int = 64
    """Windows drawn from the validation stream; in each the future is changed at one position."""
    seed: int = 0
    """Which windows and positions."""
    stride: int = 0
    """Tokens each window scores; default: the run's setting, else 64."""
    tokenizer: Path | None = None
    """Tokenizer of an artifact outside its run folder."""
    dataset: Path | None = None
    """Folder of the validation shards; default: the run's."""
    json: Path | None = None
    """File for the verdict."""


def verify(argv: list[str]) -> None:
    """Prove on the running model that its score is valid: causal, normalized, repeatable, all counted."""
    from pargolf import tables
    from pargolf.pipeline import find_target
    from pargolf.submission.verify import check_verdict, verify_target, write_verdict

    args = parse(VerifyArgs, argv, "pargolf verify")
    target = find_target(args.artifact, args.tokenizer, args.dataset)
    settings = target.config.eval if target.config else EvalConfig()
    verdict = verify_target(target, args.module, args.stride or settings.stride, args.positions, args.seed)
    tables.show_verdict(verdict)
    if args.json is not None:
        write_verdict(args.json, verdict, target)
    check_verdict(verdict, target)
