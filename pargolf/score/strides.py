"""What a smaller stride of the sliding window gains and costs, on a sample of the validation stream."""

import time
from dataclasses import dataclass

from pargolf.run.target import Target, load_model, open_artifact
from pargolf.score.windows import Score, score
from pargolf.system import distributed
from pargolf.system.console import Bar
from pargolf.system.errors import UserError

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


def sample_strides(target: Target, batch_rows: int) -> StrideSample:
    """Score an artifact's sample at those STRIDES that its window holds (else at its window's length).

    Writes nothing. Raises UserError as `eval_run`. Under torchrun every rank calls this.
    """
    if batch_rows < 1:
        raise UserError(f"batch_rows must be at least 1, is {batch_rows}")
    stream = target.stream("val")
    tokens = stream.read(0, min(len(stream), SAMPLE_TOKENS + 1))
    with distributed.world(target.device_type) as device:
        artifact, tokenizer = open_artifact(target)
        model, table = load_model(artifact, target.dtype).to(device), tokenizer.byte_table()
        window = artifact.model.seq_len
        # The first batch starts threads and takes memory from the system: not timed.
        score(model, tokens[: batch_rows * window + 1], table, window, batch_rows)
        rows = []
        for stride in [stride for stride in STRIDES if stride <= window] or [window]:
            start = time.perf_counter()
            with Bar(f"scoring at stride {stride}") as bar:
                result = score(model, tokens, table, stride, batch_rows, bar)
            rows.append(StrideRow(stride, result, time.perf_counter() - start))
    return StrideSample(tuple(rows), len(stream) - 1)
