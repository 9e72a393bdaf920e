"""A text scored token by token: what each costs, what the model expected there, and where the bits go."""

import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from pargolf.data.tokenizer import Tokenizer
from pargolf.library import Model
from pargolf.score.passages import Passage, Span, context_edges, spans
from pargolf.score.windows import most_rows, over_windows, windows
from pargolf.system.progress import OnProgress, unseen

LIKELIEST = 5  # pieces told for each token
KINDS = (
    "whitespace", "byte fallback", "number", "capitalised word", "lower-case word", "word continuation",
    "punctuation",
)  # fmt: skip


@dataclass(frozen=True)
class Token:
    """One token of a text, and what the model thought of it."""

    piece: str
    """As the vocabulary writes it."""
    kind: str
    """One of KINDS, by `kind_of`."""
    bytes: int
    bits: float
    rank: int
    """1 for the likeliest token of the vocabulary, 2 for the next, ..."""
    context: int
    """Tokens that it was predicted from, BOS among them."""
    likeliest: tuple[tuple[str, float], ...]
    """The LIKELIEST pieces at its place and their probabilities, likeliest first."""


@dataclass(frozen=True)
class CostRow:
    """What some of the tokens cost together."""

    label: str
    tokens: int
    bytes: int
    bits: float

    @property
    def bpb(self) -> float | None:
        """Bits per byte; None without bytes."""
        return self.bits / self.bytes if self.bytes else None


@dataclass(frozen=True)
class Explanation:
    """A text, scored as one document by the sliding window."""

    tokens: list[Token]
    spans: list[Span]
    """The text in pieces, each of one token or of the few that spell one character."""
    stride: int
    seq_len: int

    @cached_property
    def total(self) -> CostRow:
        """All tokens; its `bpb` is the score."""
        return _row("total", self.tokens)

    def share(self, row: CostRow) -> float:
        """Of all bits, those of `row`."""
        return row.bits / self.total.bits if self.total.bits else 0.0

    def by_kind(self) -> list[CostRow]:
        """A row for each of KINDS that occurs; every token is in one."""
        return _rows(self.tokens, (token.kind for token in self.tokens), {kind: kind for kind in KINDS})

    def by_context(self) -> list[CostRow]:
        """A row for each range of `Token.context` (see `context_edges`); every token is in one."""
        edges = context_edges(self.seq_len).tolist()
        places = np.searchsorted(edges, [token.context for token in self.tokens])
        labels = {
            i: str(high) if high == low + 1 else f"{low + 1}–{high}"
            for i, (low, high) in enumerate(pairwise(edges), 1)
        }
        return _rows(self.tokens, places.tolist(), labels)


def explain(model: Model, text: str, stride: int = 64, progress: OnProgress = unseen) -> Explanation:
    """Score `text` as `model.bits_per_byte` does, and keep what there is to know of each token.

    `progress` is called with windows done and windows in all. Raises as `bits_per_byte`.
    """
    tokenizer = model.tokenizer
    whole = model.scored(text, stride)
    scored = replace(whole, tokens=whole.tokens[1:], sizes=whole.sizes[1:])
    tokens = scored.tokens
    bits, ranks, contexts, ids, shares = _predictions(model, whole.tokens, stride, progress)
    shown = spans(Passage(0, len(scored), scored.bytes, float(bits.sum())), scored, bits)
    found = [
        Token(
            tokenizer.piece_of(token), kind, size, cost, rank, context,
            tuple((tokenizer.piece_of(i), share) for i, share in zip(best, probabilities, strict=True)),
        )
        for token, kind, size, cost, rank, context, best, probabilities in zip(
            tokens.tolist(), _kinds(shown, tokens, tokenizer), scored.sizes.tolist(), bits.tolist(),
            ranks.tolist(), contexts.tolist(), ids.tolist(), shares.tolist(), strict=True,
        )
    ]  # fmt: skip
    return Explanation(found, shown, stride, model.config.seq_len)


@torch.inference_mode()
def _predictions(
    model: Model, stream: np.ndarray, stride: int, progress: OnProgress
) -> tuple[np.ndarray, ...]:
    """For each token but the first of `stream` (N + 1,): bits, rank and context (N,), and the ids and
    probabilities of the likeliest (N, LIKELIEST), each in the window that scores it."""
    gpt, count = model.gpt, len(stream) - 1
    wide = (count, min(LIKELIEST, model.config.vocab_size))
    found = (
        np.zeros(count), np.zeros(count, int), np.zeros(count, int), np.zeros(wide, int), np.zeros(wide)
    )  # fmt: skip
    plan = windows(count, model.config.seq_len, stride)
    rows_at_once = most_rows(gpt, model.target.scoring.batch_rows)
    for batch, rows in over_windows(stream, plan, rows_at_once, progress):
        first, inputs = batch[0].first, torch.from_numpy(rows).to(gpt.embed.weight.device)
        logprobs = gpt.head(gpt.trunk(inputs[:, :-1], first=first)).log_softmax(-1)
        own = logprobs.gather(-1, inputs[:, first + 1 :, None])
        best = logprobs.topk(wide[1])
        context = torch.arange(first + 1, rows.shape[1]).expand(len(batch), -1)
        values = (
            own[..., 0].cpu().double() / -math.log(2), 1 + (logprobs > own).sum(-1), context, best.indices,
            best.values.exp(),
        )  # fmt: skip
        for into, value in zip(found, values, strict=True):
            for window, row in zip(batch, value.cpu().numpy(), strict=True):
                into[window.start + first : window.start + window.length] = row[: window.length - first]
    return found


def kind_of(text: str, is_byte: bool, before: str) -> str:
    """The kind of a token: the first of these that holds.

    - "whitespace": its text is nothing else (also a line break that is spelled as a byte)
    - "byte fallback": one byte of a character that has no piece of its own
    - by its first character that is no space: "number" if that is a digit; if it is a letter,
      "word continuation" where it follows a letter or digit at once, "capitalised word" where it is
      an upper-case letter, else "lower-case word" (also in scripts without case)
    - "punctuation": all else, such as symbols

    `text` is the token's, of a byte that of its whole character, and `before` the text before it.
    Letters are Unicode's categories L and M, digits N.
    """
    if text.isspace():
        return "whitespace"
    if is_byte:
        return "byte fallback"
    word = text.lstrip()
    category = unicodedata.category(word[0]) if word else ""
    if category.startswith("N"):
        return "number"
    if not category.startswith(("L", "M")):
        return "punctuation"
    if word == text and before and unicodedata.category(before[-1]).startswith(("L", "M", "N")):
        return "word continuation"
    return "capitalised word" if category in ("Lu", "Lt") else "lower-case word"


def _kinds(shown: Iterable[Span], tokens: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    found: list[str] = []
    before = ""
    for span in shown:
        kind = kind_of(span.text, tokenizer.is_fallback(int(tokens[span.start])), before)
        found += [kind] * (span.stop - span.start)
        before = span.text or before
    return found


def _rows(tokens: Iterable[Token], keys: Iterable[Any], labels: Mapping[Any, str]) -> list[CostRow]:
    groups: dict[Any, list[Token]] = {key: [] for key in labels}
    for token, key in zip(tokens, keys, strict=True):
        groups[key].append(token)
    return [_row(labels[key], members) for key, members in groups.items() if members]


def _row(label: str, tokens: list[Token]) -> CostRow:
    return CostRow(
        label, len(tokens), sum(token.bytes for token in tokens), math.fsum(token.bits for token in tokens)
    )
