"""The model stepped over several streams of tokens at once, each with a sliding context of its own."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pargolf.config.schema import ModelConfig
from pargolf.model.attention import KVCache
from pargolf.model.gpt import GPT
from pargolf.system.progress import OnProgress, unseen

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """`tokens` consecutive tokens cut into `streams` streams, one after the other.

    The first tokens % streams of them have one token more than the others, as np.array_split cuts.
    """

    tokens: int
    streams: int
    keep: int
    """Tokens of context that are left when it was full, 1 .. seq_len."""

    @property
    def steps(self) -> int:
        """Tokens of the longest stream."""
        return -(-self.tokens // self.streams)

    def active(self, step: int) -> int:
        """How many streams, from the first on, have a token at this step."""
        return self.streams if step < self.tokens // self.streams else self.tokens % self.streams

    def columns(self, tokens: Tokens) -> list[Tokens]:
        """tokens (N,) -> for each step the tokens (active,) that the streams have there."""
        lengths = np.full(self.streams, self.tokens // self.streams)
        lengths[: self.tokens % self.streams] += 1
        starts = np.cumsum(lengths) - lengths
        return [tokens[starts[: self.active(step)] + step] for step in range(self.steps)]

    def joined(self, columns: list[Tokens]) -> Tokens:
        """The tokens (N,) that `columns` were made of."""
        order = np.concatenate([np.empty(0, np.int64), *self.columns(np.arange(self.tokens))])
        tokens = np.empty(self.tokens, np.int64)
        tokens[order] = np.concatenate([np.empty(0, np.int64), *columns])
        return tokens


@torch.no_grad()  # not inference_mode, whose tensors cannot be learnt from
def walk(
    model: GPT,
    bos_id: int,
    layout: Layout,
    next_tokens: Callable[[Tensor], Tokens],
    progress: OnProgress = unseen,
    learn: Callable[[Tensor], None] | None = None,
) -> list[Tokens]:
    """Step all streams from their BOS to their ends; returns the tokens (active,) of each step.

    `next_tokens` gets logits (active, vocab_size) and answers with the tokens (active,) that come
    there: a coder's table of known ones, or what a decoder reads. Both then run the same
    arithmetic in the same shapes, which is what makes their floats equal. A stream that is one
    token shorter runs on with the others, and its last logits are not shown.

    When the context holds seq_len tokens, the cache is computed anew from the last `layout.keep`. Before
    that `learn` gets the last seq_len tokens (streams, seq_len) of all streams, and may change the model.
    """
    cache = KVCache(model.config, layout.streams, model.dtype)
    recent = torch.full((layout.streams, 1), bos_id)  # the last seq_len tokens of each stream, or all
    pending = recent
    columns = []
    for step in range(layout.steps):
        if cache.length + pending.size(1) > model.config.seq_len:
            cache.length, pending = 0, recent[:, -layout.keep :]
            if learn is not None:
                learn(recent)
        states = model.trunk(pending, cache, first=pending.size(1) - 1)
        active = layout.active(step)
        columns.append(next_tokens(model.head(states[:active, 0])))
        pending = torch.zeros(layout.streams, 1, dtype=torch.int64)
        pending[:active, 0] = torch.from_numpy(columns[-1])
        recent = torch.cat((recent, pending), 1)[:, -model.config.seq_len :]
        progress(step + 1, layout.steps)
    return columns


def cache_bytes(c: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values that each stream's context takes."""
    return 2 * len(c.visits) * c.seq_len * c.d_kv * dtype.itemsize
