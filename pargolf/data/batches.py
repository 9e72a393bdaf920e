"""Training batches as a function of the step number, so that resuming needs nothing else."""

from typing import Literal

import numpy as np

from pargolf.data.shards import TokenStream
from pargolf.system.errors import UserError


class Batches:
    """Cuts a token stream into micro-batches; micro-batch `index` of `step` is always the same.

    A step has `micro_batches` of them over all ranks. Rank r of W takes the indices j * W + r,
    so that every world size sees the same data.

    order "stream" is the challenge's loader: consecutive spans, one a micro-batch.
    order "shuffle" deals out rows in a new random order every epoch.
    """

    def __init__(
        self,
        stream: TokenStream,
        seq_len: int,
        batch_tokens: int,
        micro_batches: int,
        order: Literal["stream", "shuffle"],
        seed: int,
    ) -> None:
        """Raise UserError if the stream is smaller than one row or the sizes do not divide."""
        if len(stream) < seq_len + 1:
            raise UserError(
                f"the dataset has {len(stream)} tokens, a row takes {seq_len + 1};"
                " use more text or a smaller seq_len"
            )
        self.rows, rest = divmod(batch_tokens, micro_batches * seq_len)
        if rest or not self.rows:
            raise UserError(f"batch_tokens {batch_tokens} is not a multiple of {micro_batches} x {seq_len}")
        self.stream, self.seq_len, self.micro_batches = stream, seq_len, micro_batches
        self.order, self.seed = order, seed
        self._epoch: tuple[int, int, np.ndarray] | None = None

    def micro_batch(self, step: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (the next tokens) of one micro-batch, int64 of shape (rows, seq_len)."""
        number = step * self.micro_batches + index
        if self.order == "stream":
            length = self.rows * self.seq_len + 1
            span = self.stream.read(number * length, length).astype(np.int64)
            return span[:-1].reshape(self.rows, -1), span[1:].reshape(self.rows, -1)
        rows = np.stack([self._row(number * self.rows + r) for r in range(self.rows)]).astype(np.int64)
        return rows[:, :-1], rows[:, 1:]

    def _row(self, number: int) -> np.ndarray:
        # Rows overlap by one token, so every token is a target once an epoch but for the
        # remainder of the division; the random offset moves that and all row borders.
        epoch, place = divmod(number, len(self.stream) // self.seq_len)
        offset, permutation = self._shuffled(epoch)
        return self.stream.read(offset + int(permutation[place]) * self.seq_len, self.seq_len + 1)

    def _shuffled(self, epoch: int) -> tuple[int, np.ndarray]:
        if self._epoch is None or self._epoch[0] != epoch:
            generator = np.random.default_rng(np.random.SeedSequence([self.seed, epoch]))
            offset = int(generator.integers(self.seq_len))
            self._epoch = epoch, offset, generator.permutation(len(self.stream) // self.seq_len)
        return self._epoch[1:]
