"""What is verified: the artifact's own model, or one or a scorer from a Python file of the user's."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pargolf.data.text import Text
from pargolf.model.gpt import GPT
from pargolf.run.target import Target, load_model
from pargolf.system.errors import UserError


@runtime_checkable
class ModelUnderTest(Protocol):
    """What is verified: a `ScoredGPT`, or what the `load` of a user's file returns.

    It may also have token_bytes(previous, targets), the bytes it counts for each of the integers
    `targets` (n,) after the tokens `previous` (n,); otherwise the tokenizer's table counts.
    """

    @property
    def seq_len(self) -> int:
        """Most tokens in a window."""

    def logprobs(self, rows: Tensor) -> Tensor:
        """Natural log of every token's probability, (B, T, vocab_size), after each position of rows.

        rows (B, T) int64, on the CPU, are windows of the stream, each on its own.
        """


@runtime_checkable
class AdaptiveScorer(Protocol):
    """What is verified: an `AdaptedGPT`, or what the `load` of a user's file returns.

    It may say `documents_alone = True`: then no document's score depends on another document.
    """

    def scores(self, text: Text) -> Iterable[tuple[np.ndarray, Tensor]]:
        """In the order of scoring: places (n,) in the stream, and the natural log of every token's
        probability there, (n, vocab_size)."""


@dataclass(frozen=True)
class ScoredGPT:
    """pargolf's model as `score` runs it: a window's last `stride` positions, and those before them."""

    gpt: GPT
    stride: int

    @property
    def seq_len(self) -> int:
        return self.gpt.config.seq_len

    def logprobs(self, rows: Tensor) -> Tensor:
        rows = rows.to(self.gpt.embed.weight.device)
        first = max(0, rows.size(1) - self.stride)
        # The first window's way, then the later ones': the last layer at the scored positions alone.
        states = torch.cat((self.gpt.trunk(rows)[:, :first], self.gpt.trunk(rows, first=first)), dim=1)
        return self.gpt.head(states).log_softmax(-1)


def load_own(target: Target, device: torch.device, stride: int) -> ScoredGPT:
    """The artifact's model, read from disk anew."""
    artifact, _ = target.open()
    return ScoredGPT(load_model(artifact, target.dtype).to(device), stride)


def loader_of(file: Path) -> Callable[[Path], ModelUnderTest | AdaptiveScorer]:
    """The function load(artifact_path) of a Python file, which is run for that.

    What it loads is a `ModelUnderTest` or an `AdaptiveScorer`. UserError if the file is none, fails, or has
    no such function.
    """
    load = getattr(_run(file), "load", None)
    if load is None:
        raise UserError(f"{file} has no function load(artifact_path) that returns a model")

    def checked(artifact: Path) -> ModelUnderTest | AdaptiveScorer:
        model = load(artifact)
        if not isinstance(model, ModelUnderTest | AdaptiveScorer):
            raise UserError(
                f"{file}: load() returned {model!r:.80}, which lacks seq_len or logprobs(rows), and"
                " scores(text)"
            )
        return model

    return checked


def _run(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("verified_model", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{file} is no Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with blaming(file):
        spec.loader.exec_module(module)
    return module


@contextmanager
def blaming(file: Path) -> Iterator[None]:
    """Within the block, whatever the user's file does wrong is a UserError with the line of it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        # The import makes a path absolute, and follows no links.
        lines = [frame.lineno for frame in frames if frame.filename == os.path.abspath(file)]
        if not lines and not isinstance(error, SyntaxError):
            raise  # not the user's fault
        place = f"{file}, line {lines[-1]}" if lines else str(file)
        raise UserError(f"{place}: {type(error).__name__}: {error}") from error
