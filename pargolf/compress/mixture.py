"""One distribution of the model's and of counts, with weights that learn from every token."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pargolf.compress.counts import ORDERS, Floats, Followers

# Weights of the model, of counts of contexts, and of tokens alone: what they come to on articles.
START = (0.75, 0.35, -0.1)
RATE = 0.005


class Mixture:
    """p(t) = exp(w . l(t)) / Z, l(t) the logarithms of t's probability by the model, by the counts of its
    context, and by those of tokens alone.

    There are weights w for each number of known contexts. After each token x they go down the gradient
    of its cost: w += rate (l(x) - sum of p(t) l(t)). (Logistic mixing, Mahoney's PAQ7, for a whole
    vocabulary.) All arithmetic is numpy's, in float64, without a product of matrices, whose order of
    additions is nobody's promise.
    """

    def __init__(self, vocab_size: int, streams: int):
        self.followers = Followers(vocab_size)
        self.recent: list[list[int]] = [[] for _ in range(streams)]
        self.weights: Floats = np.tile(START, (len(ORDERS) + 1, 1))

    def logits(self, model: Tensor) -> Tensor:
        """The model's logits (active, V) of each stream's next token -> the mixture's, float32."""
        by_model = model.double().log_softmax(-1).numpy()
        predicted = [self.followers.predict(recent) for recent in self.recent[: len(model)]]
        self.known = np.array([known for _, known in predicted])
        by_counts = np.log([shares for shares, _ in predicted])
        alone = np.broadcast_to(np.log(self.followers.alone), by_model.shape)
        self.parts = np.stack((by_model, by_counts, alone), 1)
        mixed = (self.weights[self.known][:, :, None] * self.parts).sum(1)
        self.shares = np.exp(mixed - mixed.max(1, keepdims=True))
        self.shares /= self.shares.sum(1, keepdims=True)
        return torch.from_numpy(mixed).float()

    def learn(self, tokens: NDArray[np.int64]) -> None:
        """What came after the contexts of the last `logits`, tokens (active,)."""
        actual = self.parts[np.arange(len(tokens)), :, tokens]
        expected = (self.shares[:, None] * self.parts).sum(2)
        np.add.at(self.weights, self.known, RATE * (actual - expected))
        for recent, token in zip(self.recent, tokens.tolist(), strict=False):
            self.followers.count(recent, token)
            recent.append(token)
            del recent[: -max(ORDERS)]
