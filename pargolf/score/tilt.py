"""What followed the same phrase before: a hint for the next token, made of earlier tokens alone.

p'(t) = p(t) e^(b [t = hint]) / Z: the hint's logit is raised by b, so that all probabilities still sum to
1 (challenge thread 1514; why counts of pairs do not: threads 677 and 886). Phrases are compared whole, and
not by a hash of them.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pargolf.data.text import Text
from pargolf.score.windows import Window

# Length of the phrase in tokens, longest first; how sure its most frequent follower must be, as a share of
# all followers; and how often it must have followed.
ORDERS = ((16, 0.5, 2), (14, 0.5, 2), (12, 0.6, 2), (10, 0.7, 3), (8, 0.7, 3))


class Hints(NamedTuple):
    """For each token of a stream (N,): what has followed the phrase before it most often, and its share.

    The share is 0 where there is no hint.
    """

    tokens: np.ndarray
    shares: np.ndarray


def hints(text: Text, by_document: bool = False) -> Hints:
    """Hints for each token of a text, made of the tokens before it, or of those of its document alone."""
    own = text.tokens.astype(np.int64)
    phrases = {1: own}
    if by_document:
        phrases[1] = _named(own, np.cumsum(own == text.tokenizer.bos_id))
    for half in (1, 2, 4, 8):
        phrases[2 * half] = _longer(phrases[half], phrases[half], half)
    for order, most, rest in ((10, 8, 2), (12, 8, 4), (14, 12, 2)):
        phrases[order] = _longer(phrases[most], phrases[rest], rest)
    found, shares = np.zeros(len(own), np.int64), np.zeros(len(own))
    for order, least, times in reversed(ORDERS):
        followers, counts, seen = _followers(phrases[order], own, order)
        share = counts / np.maximum(seen, 1)
        good = (counts >= times) & (share >= least)
        found[good], shares[good] = followers[good], share[good]
    return Hints(found, shares)


def tilted(logits: Tensor, phrases: Hints, batch: list[Window], strength: float) -> Tensor:
    """logits (B, T, vocab_size) of what the windows of `batch` score, with those of hints raised by
    strength x share."""
    hint, raised = (np.zeros(logits.shape[:2], of.dtype) for of in phrases)
    for row, window in enumerate(batch):
        for into, values in zip((hint, raised), phrases, strict=True):
            of_window = values[window.targets]
            into[row, : len(of_window)] = of_window
    b = strength * torch.from_numpy(raised).to(logits)
    return logits.scatter_add(-1, torch.from_numpy(hint).to(logits.device)[..., None], b[..., None])


def _named(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A number for each pair of numbers, the same for the same pair."""
    return np.unique(first * (int(second.max()) + 1) + second, return_inverse=True)[1].astype(np.int64)


def _longer(phrase: np.ndarray, last: np.ndarray, size: int) -> np.ndarray:
    """Phrases that end with `last`, of `size` tokens, and begin with the `phrase` that ends before it."""
    before = np.full_like(phrase, phrase.max() + 1)  # the stream begins within the phrase
    before[size:] = phrase[:-size]
    return _named(before, last)


def _followers(phrase: np.ndarray, tokens: np.ndarray, order: int) -> tuple[np.ndarray, ...]:
    """For each token (N,), of the phrase of `order` tokens before it: the follower that first reached the
    most occurrences so far, these occurrences, and those of all its followers so far."""
    count = len(tokens)
    followers, counts, seen = (np.zeros(count, np.int64) for _ in range(3))
    places = np.arange(order, count)
    key, target = phrase[places - 1], tokens[places]
    if not len(places):
        return followers, counts, seen
    by_phrase = np.argsort(key, kind="stable")
    key, target, places = key[by_phrase], target[by_phrase], places[by_phrase]
    pair = _named(key, target)
    times = _running_count(pair)  # how often this pair has come, this time included
    nth = _running_count(key)
    # Most occurrences of a follower up to each place of the same phrase, and where they were reached first.
    value = key * (times.max() + 1) + times
    most = np.maximum.accumulate(value)
    is_new = np.append(True, value[1:] > most[:-1])
    best = np.maximum.accumulate(np.where(is_new, np.arange(len(key)), 0))
    later = nth > 1  # before the first follower nothing is known
    at = np.flatnonzero(later)
    followers[places[at]] = target[best[at - 1]]
    counts[places[at]] = times[best[at - 1]]
    seen[places[at]] = nth[at] - 1
    return followers, counts, seen


def _running_count(groups: np.ndarray) -> np.ndarray:
    """How often each number has come up to and with each place."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    sizes = np.diff(np.append(begins, len(groups)))
    result = np.empty(len(groups), np.int64)
    result[order] = np.arange(len(groups)) - np.repeat(begins, sizes) + 1
    return result
