"""Is a score valid? The conditions for that, tried on the running model and not read off its code.

Conditions: the challenge's thread 1017 and the rulings of its maintainers. docs/verify.md says
what is tried for each, and what that cannot show.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pargolf.config.schema import EvalConfig
from pargolf.data.text import Text
from pargolf.run.target import Target
from pargolf.score.windows import check_stride, document_windows, windows
from pargolf.system import distributed
from pargolf.system.console import Bar
from pargolf.system.errors import UserError
from pargolf.system.files import sha256_file, write_json
from pargolf.system.progress import OnProgress, unseen
from pargolf.verify.adaptive import load_adapted, sample_of, trials_of, verify_adaptive
from pargolf.verify.conditions import (
    LOGPROB_TOLERANCE,
    SUM_TOLERANCE,
    Condition,
    Verdict,
    bytes_of_text,
    compared,
    difference,
    finite,
)
from pargolf.verify.model_under_test import AdaptiveScorer, ModelUnderTest, blaming, load_own, loader_of

Fresh = Callable[[], Callable[[Tensor], Tensor]]
"""Gives a newly loaded model's logprobs."""

CHUNK_VALUES = 1 << 24  # log-probabilities held at once, 64 MiB in float32


@dataclass(frozen=True)
class Trials:
    """Windows of the stream in its order, and the same with another future."""

    rows: Tensor
    """(n, T + 1) int64: inputs and, one further, their targets."""
    cuts: Tensor
    """(n,) in 1 .. T - 1: the first input that is changed."""
    changed: Tensor
    """(n, T): the inputs with every token from the cut on replaced by another one."""

    @property
    def inputs(self) -> Tensor:
        """(n, T)"""
        return self.rows[:, :-1]

    def split(self, size: int) -> list["Trials"]:
        parts = (x.split(size) for x in (self.rows, self.cuts, self.changed))
        return [Trials(*part) for part in zip(*parts, strict=True)]


def choose_trials(text: Text, seq_len: int, count: int, seed: int) -> Trials:
    """`count` windows of a text, a third cut at a document's start, a third at a window's edge.

    Raises UserError if the stream is too short to cut.
    """
    tokens, tokenizer = text.tokens, text.tokenizer
    length = min(seq_len, len(tokens) - 1)
    if length < 2:
        raise UserError(f"a window of {length} validation tokens has no later token to change")
    generator = np.random.default_rng(seed)
    last = len(tokens) - length - 1
    starts = generator.integers(0, last, size=count, endpoint=True)
    cuts = generator.integers(1, length, size=count)
    cuts[1::3] = generator.choice((1, length - 1), size=len(cuts[1::3]))
    documents = np.flatnonzero(tokens[1:-1] == tokenizer.bos_id) + 1
    if len(documents):
        # The change begins with a BOS or right after it, at a random place of the window.
        at = generator.choice(documents, size=len(cuts[2::3])) + generator.integers(0, 2, len(cuts[2::3]))
        starts[2::3] = np.clip(at - cuts[2::3], 0, last)
        cuts[2::3] = np.clip(at - starts[2::3], 1, length - 1)
    order = np.argsort(starts, kind="stable")
    rows = np.stack([tokens[start : start + length + 1] for start in starts[order]]).astype(np.int64)
    inputs, cuts = rows[:, :-1], cuts[order]
    others = (inputs + generator.integers(1, tokenizer.vocab_size, inputs.shape)) % tokenizer.vocab_size
    changed = np.where(np.arange(length) < cuts[:, None], inputs, others)
    return Trials(*map(torch.from_numpy, (rows, cuts, changed)))


@torch.no_grad()
def verify(
    load: Callable[[], ModelUnderTest],
    text: Text,
    stride: int = 64,
    positions: int = 64,
    seed: int = 0,
    progress: OnProgress = unseen,
    apart: bool = False,
) -> Verdict:
    """Try each condition on a model that is scored on `text`, windows every `stride`.

    With `apart` they are those of each document alone.

    `load` gives the model as freshly read from its artifact, and is called several times.
    `positions` windows are drawn by `seed`, and a future is changed in each. `progress` is called
    with batches done and batches in all. Raises UserError if a setting is out of range or the model
    gives no full distribution.
    """
    model, vocab_size = load(), text.tokenizer.vocab_size
    if positions < 1:
        raise UserError(f"positions must be at least 1, is {positions}")
    check_stride(stride, model.seq_len)
    trials = choose_trials(text, model.seq_len, positions, seed)
    most = CHUNK_VALUES // (trials.inputs.size(1) * vocab_size)
    # At least four chunks where there are four windows, so that there is an order to reverse.
    chunks = trials.split(max(1, min(most, positions // 4)))

    # Determinism, causality and one pass take each chunk twice, normalization once.
    done, calls = 0, 7 * len(chunks)

    def fresh() -> Callable[[Tensor], Tensor]:
        new = load()

        def logprobs(rows: Tensor) -> Tensor:
            nonlocal done
            done += 1
            progress(done, calls)
            return _full_logprobs(new, rows, vocab_size)

        return logprobs

    scored, earlier = trials.inputs.numel(), int(trials.cuts.sum())
    unlike, off = _unlike(fresh, chunks), _off(fresh, chunks)
    leak = kept = None
    if unlike <= LOGPROB_TOLERANCE:
        leak, kept = _leak(fresh, chunks), _kept(fresh, chunks)
    sums = f"{scored:,} positions: their {vocab_size:,} probabilities sum to 1 within {off:.1e}"
    return Verdict(
        (
            compared("determinism", scored, f"artifact read twice, {scored:,} positions", unlike),
            Condition("normalization", off <= SUM_TOLERANCE, scored, finite(off), SUM_TOLERANCE, sums),
            compared(
                "causality",
                earlier,
                f"{positions:,} futures changed, {earlier:,} positions before them",
                leak,
            ),
            compared("one pass", scored, f"{scored:,} tokens scored again, last windows first", kept),
            _accounting(model, text, stride, apart),
        )
    )


def _full_logprobs(model: ModelUnderTest, rows: Tensor, vocab_size: int) -> Tensor:
    """The model's logprobs, on the CPU; UserError unless they cover the vocabulary at every position."""
    values = model.logprobs(rows.clone())
    wanted = (*rows.shape, vocab_size)
    if not isinstance(values, Tensor) or values.shape != wanted:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"logprobs gave {shape}, no tensor of the whole vocabulary, {wanted}")
    return values.cpu()


def _unlike(fresh: Fresh, chunks: list[Trials]) -> float:
    """Largest difference between the log-probabilities of two models of one artifact."""
    first, second = fresh(), fresh()
    return max(difference(first(chunk.inputs), second(chunk.inputs)) for chunk in chunks)


def _off(fresh: Fresh, chunks: list[Trials]) -> float:
    """Largest difference of a sum of probabilities from 1."""
    logprobs = fresh()
    sums = [logprobs(chunk.inputs).double().exp().sum(-1) for chunk in chunks]
    return max(difference(x, torch.ones_like(x)) for x in sums)


def _leak(fresh: Fresh, chunks: list[Trials]) -> float:
    """Largest change of a log-probability when every token after its context is another."""
    leaks = []
    for chunk in chunks:
        # Models that have seen nothing yet: what one keeps between calls is not judged here.
        true, other = fresh()(chunk.inputs), fresh()(chunk.changed)
        before = torch.arange(true.size(1)) < chunk.cuts[:, None]
        leaks.append(difference(true[before], other[before]))
    return max(leaks)


def _kept(fresh: Fresh, chunks: list[Trials]) -> float:
    """Largest change of a token's score when later windows, and its own, have been scored before."""
    logprobs = fresh()

    def scores(chunk: Trials) -> Tensor:
        return logprobs(chunk.inputs).gather(-1, chunk.rows[:, 1:, None])

    once = [scores(chunk) for chunk in chunks]
    return max(
        difference(scores(chunk), score) for chunk, score in reversed([*zip(chunks, once, strict=True)])
    )


def _accounting(model: ModelUnderTest, text: Text, stride: int, apart: bool) -> Condition:
    """Count the whole stream as `score` does: each token once, and the bytes of its text."""
    wanted = bytes_of_text(text)
    stream = windows(len(text) - 1, model.seq_len, stride)
    plan = document_windows(text, model.seq_len, stride) if apart else stream
    seen, counted = np.zeros(len(text), np.int32), 0
    for window in plan:
        seen[window.targets] += 1
        counted += _counted(model, text, window.targets)
    seen = seen[1:]
    once = bool((seen == 1).all())
    times = "once each" if once else f"{seen.min()} to {seen.max()} times"
    return Condition(
        "accounting", once and counted == wanted, len(seen), abs(counted - wanted), 0,
        f"{len(seen):,} tokens scored {times} by {len(plan):,} windows;"
        f" {counted:,} bytes counted, {wanted:,} in the text{f' ({text.doubt})' if text.doubt else ''}",
    )  # fmt: skip


def _counted(model: ModelUnderTest, text: Text, scored: slice) -> int:
    """Bytes that the model, if it counts them itself, or pargolf counts for some of the tokens."""
    count = getattr(model, "token_bytes", None)
    if count is None:
        return int(text.sizes[scored].sum(dtype=np.int64))
    previous = text.tokens[scored.start - 1 : scored.stop - 1]
    return int(np.sum(count(previous.astype(np.int64), text.tokens[scored].astype(np.int64))))


def verify_target(
    target: Target, file: Path | None, settings: EvalConfig, positions: int, seed: int
) -> Verdict:
    """Verify an artifact on its validation stream, with its own model or the one that `file` loads.

    A model that learns while it is scored is tried on the first tokens of the stream, enough for it to
    learn from. Raises UserError as `verify`, and where the user's file fails.
    """
    text = target.validation()
    with distributed.world(target.device_type) as device, Bar("verifying") as bar:
        if file is not None:
            theirs: Any = partial(loader_of(file), target.artifact)
            with blaming(file):
                if isinstance(theirs(), AdaptiveScorer):
                    return verify_adaptive(theirs, sample_of(text, settings), trials_of(positions), seed, bar)
                return verify(theirs, text, settings.stride, positions, seed, bar)
        if settings.adapt == "off" and not settings.tilt:
            own = partial(load_own, target, device, settings.stride)
            return verify(own, text, settings.stride, positions, seed, bar, settings.documents == "apart")
        learning = partial(load_adapted, target, device, settings)
        return verify_adaptive(learning, sample_of(text, settings), trials_of(positions), seed, bar)


def write_verdict(path: Path, verdict: Verdict, target: Target) -> None:
    """Write a verdict as JSON, with the SHA-256 of the file it is about."""
    about = {"artifact": str(target.artifact), "sha256": sha256_file(target.artifact)}
    write_json(path, about | {"valid": verdict.valid} | asdict(verdict))


def check_verdict(verdict: Verdict, target: Target) -> None:
    """UserError, naming the conditions that do not hold, unless the score is valid."""
    if not verdict.valid:
        broken = ", ".join(row.condition for row in verdict.rows if not row.holds)
        raise UserError(f"the score of {target.artifact} is not valid: {broken}")
