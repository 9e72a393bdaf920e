"""Bits per byte on held-out tokens, by plain rows or a sliding window, over the stream or in each document.

The score is defined in the challenge's rules: val_bpb = total cross-entropy in bits of the
tokens scored / UTF-8 bytes those tokens stand for.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pargolf.data.text import Text
from pargolf.model.gpt import GPT
from pargolf.system import distributed, launch
from pargolf.system.errors import require
from pargolf.system.progress import OnProgress, unseen

PARTS = 50  # of a stream, whose scores are told apart
CPU_TOKENS = 8192  # that go through a model at once, at most


@dataclass(frozen=True)
class Window:
    """Tokens [start, start + length) go in; the targets from position `first` of it on are scored."""

    start: int
    length: int
    first: int

    @property
    def targets(self) -> slice:
        """Where the scored tokens stand in the stream."""
        return slice(self.start + self.first + 1, self.start + self.length + 1)


@dataclass(frozen=True)
class Score:
    """val_loss in nats a token, val_bpb in bits a byte, and what they were taken over."""

    val_loss: float
    val_bpb: float
    tokens: int
    bytes: int
    along: tuple[float, ...] = field(default=(), compare=False)
    """Bits per byte of each of PARTS parts of the stream, in its order; nan where a part has no byte."""


class Tally:
    """Adds up, in float64, what windows of a text cost."""

    def __init__(self, text: Text):
        self.text = text
        self.sums = np.zeros((PARTS, 3))  # nats, tokens, bytes

    def add(self, window: Window, losses: np.ndarray) -> None:
        """`losses` (length - first,) in nats are of the targets that the window scores."""
        part = window.targets.start * PARTS // len(self.text)
        size = self.text.sizes[window.targets].sum(dtype=np.int64)
        self.sums[part] += losses.sum(), len(losses), size

    def score(self) -> Score:
        """Of what all ranks have added; UserError unless it is a number. Every rank calls this."""
        sums = distributed.total(torch.from_numpy(self.sums)).numpy()
        nats, count, size_bytes = sums.sum(0).tolist()
        require_number(nats)
        with np.errstate(invalid="ignore", divide="ignore"):
            along = sums[:, 0] / math.log(2) / sums[:, 2]
        return Score(
            nats / count, nats / math.log(2) / size_bytes, int(count), int(size_bytes), tuple(along.tolist())
        )


def check_stride(stride: int, seq_len: int) -> None:
    """Raise UserError unless windows of `seq_len` tokens can score `stride` each and leave none out."""
    require(1 <= stride <= seq_len, f"stride {stride} must lie in 1..{seq_len} (the window)")


def windows(targets: int, seq_len: int, stride: int, begin: int = 0) -> list[Window]:
    """Windows at begin, begin + stride, ... over `targets` target tokens, each scored exactly once.

    The first window scores all its positions, each later one its last `stride`; the tail that
    fills no whole stride is scored by a last, shorter window. stride = seq_len gives plain rows.
    """
    plan = []
    scored, start, end = begin, begin, begin + targets
    while scored < end:
        length = min(seq_len, end - start)
        plan.append(Window(start, length, scored - start))
        scored = start + length
        start += stride
    return plan


def documents(text: Text) -> list[slice]:
    """Each document's tokens, and the BOS of the next one, which is its last target."""
    starts = np.flatnonzero(text.tokens[1:-1] == text.tokenizer.bos_id) + 1
    edges = [0, *starts.tolist(), len(text) - 1]
    return [slice(start, stop + 1) for start, stop in pairwise(edges)]


def document_windows(text: Text, seq_len: int, stride: int) -> list[Window]:
    """The windows of each document alone: no context crosses a BOS.

    They are ordered for `over_windows`: whole ones before those that follow, longest first.
    """
    plan = [
        window for d in documents(text) for window in windows(d.stop - d.start - 1, seq_len, stride, d.start)
    ]
    return sorted(plan, key=lambda w: (w.first, -w.length))


def score(model: GPT, text: Text, stride: int, batch_rows: int, progress: OnProgress = unseen) -> Score:
    """Score a text by `windows` of the stream: its tokens from the second on, each once."""
    plan = windows(len(text) - 1, model.config.seq_len, stride)
    return score_windows(model, text, plan, batch_rows, progress)


@torch.inference_mode()
def score_windows(
    model: GPT, text: Text, plan: list[Window], batch_rows: int, progress: OnProgress = unseen
) -> Score:
    """Score what the windows of `plan` score of a text.

    They are shared over the ranks and summed in float64, so that the number of ranks does not matter.
    `progress` is called with windows done and windows in all (of this rank).
    """
    mine = plan[launch.rank() :: launch.world_size()]
    tally = Tally(text)
    for window, losses in window_losses(model, text.tokens, mine, batch_rows, progress):
        tally.add(window, losses)
    return tally.score()


def require_number(value: float) -> None:
    """UserError unless what a model computes is finite: there is no score of one without probabilities."""
    require(
        math.isfinite(value),
        f"the model computes {value}: its weights are damaged, or so large that they overflow; train it anew",
    )


@torch.inference_mode()
def window_losses(
    model: GPT, tokens: np.ndarray, plan: list[Window], batch_rows: int, progress: OnProgress = unseen
) -> Iterator[tuple[Window, np.ndarray]]:
    """Each window with the cross-entropies in nats (length - first,), float64, of the targets it scores."""
    device = model.embed.weight.device
    for batch, rows in over_windows(tokens, plan, most_rows(model, batch_rows), progress):
        first = batch[0].first
        losses = token_losses(model, torch.from_numpy(rows).to(device), first)
        # To the CPU in one piece; Apple's GPUs have no float64.
        for window, row in zip(batch, losses.cpu().double().numpy(), strict=True):
            yield window, row[: window.length - first]


def most_rows(model: GPT, batch_rows: int) -> int:
    """How many windows go through a model side by side: `batch_rows`; on a CPU fewer if they are long.

    There more are slower: their tensors are too large for memory that the process keeps, and the system
    clears new memory for each. Of a full-size model that learns, a token fills about a megabyte.
    """
    on_cpu = model.embed.weight.device.type == "cpu"
    return min(batch_rows, max(1, CPU_TOKENS // model.config.seq_len)) if on_cpu else batch_rows


def token_losses(model: GPT, rows: Tensor, first: int) -> Tensor:
    """Cross-entropy (B, T - first) in nats of rows[:, first + 1:] given all before, rows (B, T + 1) int64."""
    return model.loss(model.trunk(rows[:, :-1], first=first), rows[:, first + 1 :], reduction="none")


def over_windows(
    tokens: np.ndarray, plan: list[Window], batch_rows: int, progress: OnProgress = unseen
) -> Iterator[tuple[list[Window], np.ndarray]]:
    """Consecutive windows that score from the same position on, and their tokens (B, T + 1) int64.

    Shorter ones are filled up with token 0, which no position before it sees. B x T is at most
    `batch_rows` of the plan's longest window. Whoever scores, explains or calibrates goes over a stream
    this way. `progress` is called after each batch, with windows done and windows in all.
    """
    most = batch_rows * max((window.length for window in plan), default=0)
    batch: list[Window] = []
    longest = 0
    for done, (window, following) in enumerate(pairwise([*plan, None]), 1):
        assert window is not None
        batch.append(window)
        longest = max(longest, window.length)
        fits = following and (len(batch) + 1) * max(longest, following.length) <= most
        if not fits or following.first != window.first:  # type: ignore[union-attr]
            rows = np.zeros((len(batch), longest + 1), np.int64)
            for row, w in zip(rows, batch, strict=True):
                row[: w.length + 1] = tokens[w.start : w.start + w.length + 1]
            yield batch, rows
            progress(done, len(plan))
            batch, longest = [], 0


def one_window_a_row(rows: np.ndarray) -> tuple[np.ndarray, list[Window]]:
    """Rows (n, T + 1), each to be scored alone, as a stream and the windows in it."""
    count, size = rows.shape
    return rows.reshape(-1), [Window(row * size, size - 1, 0) for row in range(count)]
