"""Bits per byte on held-out tokens, by plain rows or by a sliding window.

The score is defined in the challenge's rules: val_bpb = total cross-entropy in bits of the
tokens scored / UTF-8 bytes those tokens stand for.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pargolf.data.text import Text
from pargolf.model.gpt import GPT
from pargolf.system import distributed, launch
from pargolf.system.errors import require
from pargolf.system.progress import OnProgress, unseen


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


def check_stride(stride: int, seq_len: int) -> None:
    """Raise UserError unless windows of `seq_len` tokens can score `stride` each and leave none out."""
    require(1 <= stride <= seq_len, f"stride {stride} must lie in 1..{seq_len} (the window)")


def windows(targets: int, seq_len: int, stride: int) -> list[Window]:
    """Windows at 0, stride, 2 stride, ... over `targets` target tokens, each scored exactly once.

    The first window scores all its positions, each later one its last `stride`; the tail that
    fills no whole stride is scored by a last, shorter window. stride = seq_len gives plain rows.
    """
    plan = []
    scored = start = 0
    while scored < targets:
        length = min(seq_len, targets - start)
        plan.append(Window(start, length, scored - start))
        scored = start + length
        start += stride
    return plan


@torch.inference_mode()
def score(model: GPT, text: Text, stride: int, batch_rows: int, progress: OnProgress = unseen) -> Score:
    """Score a text: its tokens from the second on, each once.

    The windows are shared over the ranks and summed in float64, so that their number does not
    matter. `progress` is called with windows done and windows in all (of this rank).
    """
    plan = windows(len(text) - 1, model.config.seq_len, stride)
    mine = plan[launch.rank() :: launch.world_size()]
    sums = torch.zeros(3, dtype=torch.float64)  # nats, tokens, bytes
    for batch, _, losses in batch_losses(model, text.tokens, mine, batch_rows, progress):
        sums[0] += losses.cpu().double().sum()  # on the CPU: Apple's GPUs have no float64
        sums[1] += losses.numel()
        sums[2] += sum(int(text.sizes[w.targets].sum(dtype=np.int64)) for w in batch)
    nats, count, size_bytes = distributed.total(sums).tolist()
    require_number(nats)
    return Score(nats / count, nats / math.log(2) / size_bytes, int(count), int(size_bytes))


def require_number(value: float) -> None:
    """UserError unless what a model computes is finite: there is no score of one without probabilities."""
    require(
        math.isfinite(value),
        f"the model computes {value}: its weights are damaged, or so large that they overflow; train it anew",
    )


@torch.inference_mode()
def batch_losses(
    model: GPT, tokens: np.ndarray, plan: list[Window], batch_rows: int, progress: OnProgress = unseen
) -> Iterator[tuple[list[Window], np.ndarray, Tensor]]:
    """For each batch of `over_windows`: its windows, their tokens, and the cross-entropies in nats
    (B, length - first) of the targets they score, on the model's device."""
    device = model.embed.weight.device
    for batch, rows in over_windows(tokens, plan, batch_rows, progress):
        yield batch, rows, token_losses(model, torch.from_numpy(rows).to(device), batch[0].first)


def token_losses(model: GPT, rows: Tensor, first: int) -> Tensor:
    """Cross-entropy (B, T - first) in nats of rows[:, first + 1:] given all before, rows (B, T + 1) int64."""
    return model.loss(model.trunk(rows[:, :-1], first=first), rows[:, first + 1 :], reduction="none")


def over_windows(
    tokens: np.ndarray, plan: list[Window], batch_rows: int, progress: OnProgress = unseen
) -> Iterator[tuple[list[Window], np.ndarray]]:
    """Consecutive windows of one shape, B <= `batch_rows` together, and their tokens (B, length + 1) int64.

    Whoever scores, explains or calibrates goes over a stream this way. `progress` is called after each
    batch, with windows done and windows in all.
    """
    batch: list[Window] = []
    for done, (window, following) in enumerate(pairwise([*plan, None]), 1):
        assert window is not None
        batch.append(window)
        same = following and (following.length, following.first) == (window.length, window.first)
        if not same or len(batch) == batch_rows:
            yield batch, np.stack([tokens[w.start : w.start + w.length + 1] for w in batch]).astype(np.int64)
            progress(done, len(plan))
            batch = []


def one_window_a_row(rows: np.ndarray) -> tuple[np.ndarray, list[Window]]:
    """Rows (n, T + 1), each to be scored alone, as a stream and the windows in it."""
    count, size = rows.shape
    return rows.reshape(-1), [Window(row * size, size - 1, 0) for row in range(count)]
