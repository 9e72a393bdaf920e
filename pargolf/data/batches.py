"""Training batches as a function of the step number, so that resuming needs nothing else."""

import math

import numpy as np

from pargolf.config.schema import RunConfig
from pargolf.data.shards import TokenStream
from pargolf.system.errors import UserError


class Batches:
    """Cuts a token stream into micro-batches; micro-batch `index` of `step` is always the same.

    A step has `micro_batches` of them over all ranks. Rank r of W takes the indices j * W + r,
    so that every world size sees the same data. data.order says what a row is and which comes next:
    "stream" is the challenge's loader, consecutive spans, one a micro-batch; the others deal out
    every row of an epoch once, in an order of the seed and the epoch.
    """

    def __init__(self, stream: TokenStream, config: RunConfig) -> None:
        """Raise UserError if the stream is smaller than one row or the sizes do not divide."""
        self.stream, self.c, self.d, self.seed = stream, config.model, config.data, config.train.seed
        self.micro_batches, batch_tokens = config.train.micro_batches, config.train.batch_tokens
        seq_len = self.c.seq_len
        if len(stream) < seq_len + 1:
            raise UserError(
                f"the dataset has {len(stream)} tokens, a row takes {seq_len + 1};"
                " use more text or a smaller seq_len"
            )
        self.rows, rest = divmod(batch_tokens, self.micro_batches * seq_len)
        if rest or not self.rows:
            raise UserError(
                f"batch_tokens {batch_tokens} is not a multiple of {self.micro_batches} x {seq_len}"
            )
        if self.d.order == "documents":
            begins = stream.find(self.c.bos_id)
            self._documents = document_rows(begins, len(stream), seq_len)
        self._epoch: tuple[int, np.ndarray] | None = None

    def micro_batch(self, step: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (the next tokens) of one micro-batch, int64 of shape (rows, seq_len)."""
        number, seq_len = step * self.micro_batches + index, self.c.seq_len
        if self.d.order == "stream":
            length = self.rows * seq_len + 1
            span = self.stream.read(number * length, length).astype(np.int64)
            return span[:-1].reshape(self.rows, -1), span[1:].reshape(self.rows, -1)
        rows = np.stack([self._row(number * self.rows + r) for r in range(self.rows)]).astype(np.int64)
        return rows[:, :-1], rows[:, 1:]

    def _row(self, number: int) -> np.ndarray:
        epoch, place = divmod(number, self._rows_an_epoch())
        if self._epoch is None or self._epoch[0] != epoch:
            generator = np.random.default_rng(np.random.SeedSequence([self.seed, epoch]))
            self._epoch = epoch, self._starts(generator)
        return self.stream.read(int(self._epoch[1][place]), self.c.seq_len + 1)

    def _rows_an_epoch(self) -> int:
        if self.d.order == "documents":
            return len(self._documents)
        if self.d.order == "coprime":
            return sum(blocks(size, self.c.seq_len) for size in self.stream.sizes)
        return len(self.stream) // self.c.seq_len

    def _starts(self, generator: np.random.Generator) -> np.ndarray:
        """Where each row of an epoch begins, in the order in which they are dealt out."""
        seq_len = self.c.seq_len
        if self.d.order == "documents":
            return generator.permutation(self._documents)
        if self.d.order == "coprime":
            return coprime_rows(self.stream.sizes, seq_len, generator)
        # Rows overlap by one token, so every token is a target once an epoch but for the
        # remainder of the division; the random offset moves that and all row borders.
        return generator.integers(seq_len) + generator.permutation(self._rows_an_epoch()) * seq_len


def blocks(size: int, seq_len: int) -> int:
    """Rows that a shard of so many tokens holds from any phase on; a tiny one has a row all the same."""
    return max(1, size // seq_len - 1)


def coprime_rows(sizes: list[int], seq_len: int, generator: np.random.Generator) -> np.ndarray:
    """Starts of rows that jump through each shard of `sizes` tokens and come from all shards in turn.

    In a shard of n rows, cut at a random phase, row j is the block (start + j * stride) mod n, with a
    stride that shares no divisor with n, so each block comes once (challenge threads 726 and 1060). There
    each batch draws its shards at random; here they are spread evenly over the epoch.
    """
    starts, places, begin = [], [], 0
    for size in sizes:
        n = blocks(size, seq_len)
        phase, start = generator.integers(seq_len), generator.integers(n)
        stride = generator.choice(np.flatnonzero(np.gcd(np.arange(n + 1), n) == 1))
        starts.append(begin + phase + (start + np.arange(n) * stride) % n * seq_len)
        places.append((np.arange(n) + generator.random()) / n)
        begin += size
    return np.concatenate(starts)[np.argsort(np.concatenate(places), kind="stable")]


def document_rows(begins: np.ndarray, end: int, seq_len: int) -> np.ndarray:
    """Starts of rows in which each document is read from its first token on.

    `begins` are the positions of the documents' first tokens, ascending, of a stream of `end` tokens. A row
    begins with a document and goes on through those that follow; the next begins `seq_len` later if that is
    in the same document, else with the first document that the row did not hold whole. So a token
    knows its document from the start, or from a multiple of `seq_len` of it, as in challenge thread 1530.
    """
    if not len(begins) or begins[0]:  # the stream begins within a document
        begins = np.concatenate([[0], begins])
    ends = np.append(begins[1:], end)
    rows, document = [], 0
    while document < len(begins):
        first, n = int(begins[document]), math.ceil((ends[document] - begins[document]) / seq_len)
        rows.append(first + np.arange(n) * seq_len)
        document = int(np.searchsorted(ends, first + n * seq_len, side="right"))
    return np.concatenate(rows)
