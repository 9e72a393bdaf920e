"""The data of a run, opened and held against its model."""

from dataclasses import dataclass
from pathlib import Path

from pargolf.config.schema import RunConfig
from pargolf.data.shards import TokenStream, open_split
from pargolf.data.tokenizer import Tokenizer
from pargolf.system.errors import UserError

SAMPLED_TOKENS = 1_000_000  # looked at to see that shards and tokenizer belong together


@dataclass(frozen=True)
class Data:
    """What a run reads: two token streams and their tokenizer."""

    train: TokenStream
    val: TokenStream
    tokenizer: Tokenizer


def load_data(config: RunConfig) -> Data:
    """Open the shards and the tokenizer; UserError if they are missing or do not fit the model."""
    tokenizer = Tokenizer(Path(config.data.tokenizer))
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"model.vocab_size is {config.model.vocab_size} but tokenizer {config.data.tokenizer}"
            f" has {tokenizer.vocab_size} pieces; make them equal"
        )
    dataset = Path(config.data.dataset)
    data = Data(open_split(dataset, "train"), open_split(dataset, "val"), tokenizer)
    for stream in (data.train, data.val):
        largest = int(stream.read(0, min(len(stream), SAMPLED_TOKENS)).max())
        if largest >= tokenizer.vocab_size:
            raise UserError(
                f"{stream.paths[0]} holds token {largest}, but tokenizer {config.data.tokenizer} has"
                f" {tokenizer.vocab_size} pieces: it was made with another"
            )
    return data
