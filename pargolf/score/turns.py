"""The order of a score that learns: what is scored when, and what is learnt from it afterwards.

A plan is data: turns, each of which is scored with what has been learnt before it and then learnt from.
`require_score_first` proves of a plan that no token is learnt from before it has been scored.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from pargolf.config.schema import EvalConfig
from pargolf.data.text import Text
from pargolf.score.windows import Window, document_windows, documents, windows
from pargolf.system.errors import require


@dataclass(frozen=True)
class Turn:
    """Windows that are scored together, and then what is learnt, from them or from earlier ones."""

    score: list[Window]
    learn: list[Window] = field(default_factory=list)
    """Whole windows (first = 0), whose targets are learnt from; of a batch, windows of `score`."""
    rate: float = 1.0
    """Share of the learning rate."""
    fresh: bool = False
    """Begin anew: adapters for new documents, or an optimizer without momentum."""
    batch: int | None = None
    """Which batch of documents this is of; one rank does all of a batch. None: all ranks share the turn."""


def plan_turns(text: Text, seq_len: int, settings: EvalConfig) -> list[Turn]:
    """The plan that `settings` ask for; every target of the text is scored once."""
    if settings.adapt == "lora":
        return list(lora_turns(text, seq_len, settings))
    if settings.documents == "apart":
        plan = document_windows(text, seq_len, settings.stride)
    else:
        plan = windows(len(text) - 1, seq_len, settings.stride)
    if settings.adapt == "off":
        return [Turn(plan)]
    return sgd_turns(plan, seq_len, settings)


def sgd_turns(plan: list[Window], seq_len: int, settings: EvalConfig) -> list[Turn]:
    """Chunks of the stream: what is scored in one is learnt from, in rows, before the next; the last is not.

    Source: challenge threads 461 and 549.
    """
    ordered = sorted(plan, key=lambda w: w.targets.start)
    chunks = [
        list(chunk) for _, chunk in groupby(ordered, lambda w: (w.targets.start - 1) // settings.sgd_chunk)
    ]
    turns = []
    for at, chunk in enumerate(chunks):
        begin, end = chunk[0].targets.start, chunk[-1].targets.stop
        rows = windows(end - begin, seq_len, seq_len, begin - 1) if at + 1 < len(chunks) else []
        turns.append(Turn(chunk, rows, _cosine(at, len(chunks), settings.sgd_end)))
    return turns


def lora_turns(text: Text, seq_len: int, settings: EvalConfig) -> Iterator[Turn]:
    """Documents in batches, the longest first; each batch chunk by chunk, side by side.

    Between batches come the phases: when so many documents are done that a share of `phase_documents` is
    reached, all weights learn from that many of them, the shortest. (Challenge threads 1530, 1610, 1626.)
    """
    require(
        settings.lora_chunk <= seq_len,
        f"eval.lora_chunk {settings.lora_chunk} is larger than the window, model.seq_len {seq_len}",
    )
    queue = sorted(documents(text), key=lambda d: d.start - d.stop)
    done: list[slice] = []
    pauses = [settings.phase_documents * k // settings.phases for k in range(1, settings.phases + 1)]
    for batch, first in enumerate(range(0, len(queue), settings.lora_documents)):
        together = queue[first : first + settings.lora_documents]
        yield from _side_by_side(together, seq_len, settings.lora_chunk, batch)
        done += together
        while pauses and len(done) >= pauses[0] and len(done) < len(queue):
            shortest = sorted(done, key=lambda d: (d.stop - d.start, d.start))[: pauses.pop(0)]
            yield from _phase(shortest, seq_len, settings)


def _side_by_side(together: list[slice], seq_len: int, chunk: int, batch: int) -> Iterator[Turn]:
    """Chunk after chunk of some documents; only those that go on are learnt from."""
    rows = [list(chunk_windows(d, seq_len, chunk)) for d in together]
    for at in range(len(rows[0])):
        yield Turn(
            [row[at] for row in rows if at < len(row)],
            [row[at] for row in rows if at + 1 < len(row)],
            fresh=at == 0,
            batch=batch,
        )


def chunk_windows(document: slice, seq_len: int, chunk: int) -> Iterator[Window]:
    """Windows of a document that score `chunk` targets each, after as much of it as a window holds."""
    for begin in range(document.start, document.stop - 1, chunk):
        start = max(document.start, begin + chunk - seq_len)
        yield Window(start, min(begin + chunk, document.stop - 1) - start, begin - start)


def _phase(done: list[slice], seq_len: int, settings: EvalConfig) -> Iterator[Turn]:
    """Rows of the documents, each on its own, as many a turn as hold sgd_chunk tokens."""
    groups: list[list[Window]] = [[]]
    for document in done:
        for row in windows(document.stop - document.start - 1, seq_len, seq_len, document.start):
            if sum(w.length for w in groups[-1]) >= settings.sgd_chunk:
                groups.append([])
            groups[-1].append(row)
    for at, rows in enumerate(groups):
        rate = _cosine(at, len(groups) + 1, settings.sgd_end)
        yield Turn([], sorted(rows, key=lambda w: -w.length), rate, fresh=at == 0)


def _cosine(at: int, count: int, end: float) -> float:
    """From 1 at the first of `count` to `end` at the last."""
    return end + (1 - end) * (1 + math.cos(math.pi * at / max(1, count - 1))) / 2


def of_rank(turns: Iterable[Turn], rank: int, world_size: int) -> Iterator[Turn]:
    """What one rank does: its batches of documents, and its share of the turns that belong to all."""
    for turn in turns:
        if turn.batch is None:
            yield replace(turn, score=turn.score[rank::world_size], learn=turn.learn[rank::world_size])
        elif turn.batch % world_size == rank:
            yield turn


def require_score_first(turns: Iterable[Turn], tokens: int) -> None:
    """AssertionError unless the turns score each target of a stream of `tokens` once, and learn from none
    before."""
    scored = np.zeros(tokens, np.int32)
    for turn in turns:
        for window in turn.score:
            scored[window.targets] += 1
        for window in turn.learn:
            assert scored[window.targets].all(), f"{window} is learnt from before it is scored"
    assert (scored[1:] == 1).all(), "a target is scored more than once, or not at all"
