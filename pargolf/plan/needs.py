"""What a run on several GPUs needs: shards to download, time, and money."""

import math
from dataclasses import dataclass

from pargolf.challenge import TIME_LIMIT
from pargolf.config.schema import RunConfig
from pargolf.data.fineweb import variant_of
from pargolf.data.shards import HEADER_BYTES, SHARD_TOKENS
from pargolf.plan.forecast import Forecast


@dataclass(frozen=True)
class Needs:
    """Of one run. Set-up, download, compiling and packing take time beyond it."""

    gpus: int
    variant: str
    """Of the FineWeb shards that the run reads, such as "sp1024"; empty where it reads other data."""
    train_shards: int
    """So many hold all tokens of the training. With fewer, training reads them again."""
    train_seconds: float
    score_seconds: float
    """At most: the challenge's limit."""

    @property
    def download_bytes(self) -> int:
        """At most: as if the validation shard, which comes along, were a full one."""
        return (self.train_shards + 1) * (HEADER_BYTES + 2 * SHARD_TOKENS)

    @property
    def hours(self) -> float:
        return (self.train_seconds + self.score_seconds) / 3600


def needs(config: RunConfig, forecast: Forecast) -> Needs:
    """What the forecast's training and the scoring after it need."""
    return Needs(
        forecast.gpus,
        variant_of(config.data.dataset),
        math.ceil(forecast.tokens / SHARD_TOKENS),
        forecast.seconds,
        float(TIME_LIMIT),
    )
