"""What each token of the validation text costs: by its place in the window, and passage by passage."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pargolf.data.text import Text
from pargolf.data.tokenizer import SPACE, Tokenizer
from pargolf.model.gpt import GPT
from pargolf.score.windows import require_number, window_losses, windows
from pargolf.system.progress import OnProgress, unseen

PASSAGE_BYTES = 300  # a passage ends at the first end of a sentence or line after so many bytes
# Upper ends of the colours of spans, bits per byte; above the last there is one more.
LEVELS = (0.5, 1.0, 2.0, 3.0, 5.0)


@dataclass(frozen=True)
class Passage:
    """Tokens [start, stop) of a stream: the bytes of text they stand for, and what they cost."""

    start: int
    stop: int
    bytes: int
    bits: float

    @property
    def bpb(self) -> float:
        return self.bits / self.bytes


@dataclass(frozen=True)
class Span:
    """Tokens [start, stop) of a stream: one, or the few that spell one character between them."""

    start: int
    stop: int
    text: str
    bytes: int
    bits: float


def token_bits(
    model: GPT,
    tokens: np.ndarray,
    stride: int,
    batch_rows: int,
    progress: OnProgress = unseen,
) -> np.ndarray:
    """Bits (N,) float64 that each of `tokens` (N,) costs in the windows of `score`; 0 for the first.

    Their sum over the bytes of the text is val_bpb. stride = seq_len gives plain rows.
    `progress` is called with windows done and windows in all.
    """
    plan = windows(len(tokens) - 1, model.config.seq_len, stride)
    bits = np.zeros(len(tokens))
    for window, losses in window_losses(model, tokens, plan, batch_rows, progress):
        bits[window.targets] = losses / math.log(2)
    require_number(float(bits.sum()))
    return bits


def by_position(bits: np.ndarray, sizes: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of bits and of bytes of the tokens that plain rows predict from 1, 2, ..., seq_len tokens.

    `bits` (N,) are those of `token_bits` with stride = seq_len, `sizes` (N,) those of a `Text`.
    """
    position = np.arange(len(bits) - 1) % seq_len
    return np.bincount(position, bits[1:]), np.bincount(position, sizes[1:])


def passages(text: Text, bits: np.ndarray) -> list[Passage]:
    """The text cut into passages of about PASSAGE_BYTES; `bits` (N,) has one value a token.

    A passage ends with a sentence, a line or its document; where none ends for another
    PASSAGE_BYTES, after a whole character. BOS tokens belong to none, and what is left of a
    document is left out if it is shorter than half a passage.
    """
    tokens, sizes, tokenizer = text.tokens, text.sizes, text.tokenizer
    pieces = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    spaced = np.array([tokenizer.piece_of(token).startswith(SPACE) for token in range(tokenizer.vocab_size)])
    line_end = np.array([piece.endswith("\n") for piece in pieces])
    sentence_end = np.array([piece.endswith((".", "!", "?")) for piece in pieces])
    following = np.append(tokens[1:], tokenizer.bos_id)
    good_end = line_end[tokens] & ~line_end[following]  # empty lines stay with what they end
    good_end |= sentence_end[tokens] & spaced[following]
    found = []
    start = size = 0
    for at, (token, good) in enumerate(zip(tokens.tolist(), good_end.tolist(), strict=True)):
        ends_document = token == tokenizer.bos_id
        stop = at if ends_document else at + 1
        size += int(sizes[at])
        too_long = size >= 2 * PASSAGE_BYTES and not _in_a_character(tokens[start:stop], tokenizer)
        if ends_document or too_long or (good and size >= PASSAGE_BYTES) or at + 1 == len(tokens):
            if size >= PASSAGE_BYTES // 2:
                found.append(Passage(start, stop, size, float(bits[start:stop].sum())))
            start, size = at + 1, 0
    return found


def spans(passage: Passage, text: Text, bits: np.ndarray) -> list[Span]:
    """The text of a passage, token by token; `text` and `bits` as in `passages`."""
    # What a token writes depends on the tokens before it.
    begins = np.flatnonzero(text.tokens[: passage.start] == text.tokenizer.bos_id)
    begin = int(begins[-1]) if len(begins) else 0
    raw = text.tokenizer.texts_of(text.tokens[begin : passage.stop])[passage.start - begin :]
    # A token that begins within a character belongs to the span in which the character began, and an
    # operator, which writes nothing itself, to that of what it works on.
    starts = [
        passage.start + at
        for at, part in enumerate(raw)
        if at == 0 or (raw[at - 1] and not b"\x80" <= part[:1] < b"\xc0")
    ]
    return [
        Span(
            start,
            stop,
            b"".join(raw[start - passage.start : stop - passage.start]).decode(errors="replace"),
            int(text.sizes[start:stop].sum()),
            float(bits[start:stop].sum()),
        )
        for start, stop in pairwise([*starts, passage.stop])
    ]


def level(span: Span) -> int:
    """Colour of a span: how many of LEVELS its bits per byte reach."""
    return sum(span.bits >= limit * span.bytes for limit in LEVELS)


def context_edges(seq_len: int) -> np.ndarray:
    """Edges of the ranges of context 1, 2, 3-4, 5-8, ... seq_len: range i is edges[i] + 1 to edges[i + 1]."""
    return np.unique(np.minimum(np.append(0, 2 ** np.arange(seq_len.bit_length() + 1)), seq_len))


def _in_a_character(tokens: np.ndarray, tokenizer: Tokenizer) -> bool:
    # What the first bytes of one decode to.
    return tokenizer.decode(tokens).endswith("\N{REPLACEMENT CHARACTER}")
