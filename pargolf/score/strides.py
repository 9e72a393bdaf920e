"""What a smaller stride of the sliding window gains and costs, on a sample of the validation stream."""

import time
from dataclasses import dataclass

from pargolf.data.text import Text
from pargolf.model.gpt import GPT
from pargolf.score.windows import Score, score
from pargolf.system.errors import require
from pargolf.system.progress import Bars, no_bar

STRIDES = (1024, 512, 256, 128, 64)
SAMPLE_TOKENS = 16_384  # scored; 16 of the challenge's windows


@dataclass(frozen=True)
class StrideRow:
    """The score of the sample at one stride, and the seconds it took."""

    stride: int
    score: Score
    seconds: float


@dataclass(frozen=True)
class StrideSample:
    """Strides, largest first, on the first tokens of a stream that has `of_tokens` to score."""

    rows: tuple[StrideRow, ...]
    of_tokens: int


def sample_strides(model: GPT, text: Text, batch_rows: int, bars: Bars = no_bar) -> StrideSample:
    """Score a sample of `text` at those STRIDES that the model's window holds (else at its length).

    Raises UserError if `batch_rows` is below 1. Under torchrun every rank calls this.
    """
    require(batch_rows >= 1, f"batch_rows must be at least 1, is {batch_rows}")
    sample = text.first(SAMPLE_TOKENS + 1)
    window = model.config.seq_len
    # The first batch starts threads and takes memory from the system: not timed.
    score(model, sample.first(batch_rows * window + 1), window, batch_rows)
    rows = []
    for stride in [stride for stride in STRIDES if stride <= window] or [window]:
        start = time.perf_counter()
        with bars(f"scoring at stride {stride}") as bar:
            result = score(model, sample, stride, batch_rows, bar)
        rows.append(StrideRow(stride, result, time.perf_counter() - start))
    return StrideSample(tuple(rows), len(text) - 1)
