"""What followed the same few tokens earlier in the file: counts, and the distribution that they make."""

import numpy as np
from numpy.typing import NDArray

ORDERS = (1, 2, 3, 4, 6)  # tokens of context
DISCOUNT = 0.8
START = 0.5  # what every token of the vocabulary counts before the file begins

Floats = NDArray[np.float64]


class Followers:
    """How often each token has followed each context of ORDERS tokens.

    A context that n tokens have followed, u different ones, n_t times token t, has with those of the
    shorter context, P', the distribution P(t) = max(n_t - d, 0) / n + d u / n P'(t): absolute
    discounting (Ney, Essen and Kneser 1994). A token counts in the longest contexts down to the first
    that it had followed before, and not in shorter ones: those count in how many places it is new
    (update exclusion, Moffat 1990).
    """

    def __init__(self, vocab_size: int):
        self.alone: Floats = np.full(vocab_size, START)
        self.contexts: list[dict[tuple[int, ...], dict[int, int]]] = [{} for _ in ORDERS]

    def predict(self, history: list[int]) -> tuple[Floats, int]:
        """The distribution (vocab_size,) of what follows, and how many of ORDERS were known contexts."""
        shares, known = self.alone / self.alone.sum(), 0
        for order, contexts in zip(ORDERS, self.contexts, strict=True):
            followers = contexts.get(tuple(history[-order:]))
            if followers is None:
                break  # what is longer is new, too
            times = np.fromiter(followers.values(), np.float64, len(followers))
            count = times.sum()
            shares *= DISCOUNT * len(times) / count
            shares[list(followers)] += (times - DISCOUNT) / count
            known += 1
        return shares, known

    def count(self, history: list[int], token: int) -> None:
        """`token` has followed `history`."""
        for order, contexts in zip(reversed(ORDERS), reversed(self.contexts), strict=True):
            followers = contexts.setdefault(tuple(history[-order:]), {})
            followers[token] = followers.get(token, 0) + 1
            if followers[token] > 1:
                return
        self.alone[token] += 1
