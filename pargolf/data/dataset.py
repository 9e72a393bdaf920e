"""The data of a run: shards, tokenizer and sidecar, opened together and held against each other."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pargolf.config.schema import RunConfig
from pargolf.data.record import read_record
from pargolf.data.shards import TokenStream, open_sidecar, open_split
from pargolf.data.text import Text, measured
from pargolf.data.tokenizer import Tokenizer
from pargolf.system import distributed, launch
from pargolf.system.errors import Mismatch, UserError, require

UNRECORDED = "no dataset.json beside the shards: that their tokens are this tokenizer's is taken for granted"


@dataclass(frozen=True)
class Data:
    """What a run reads: the tokens it learns from, and the text it is scored on."""

    train: TokenStream
    val: Text

    @property
    def tokenizer(self) -> Tokenizer:
        return self.val.tokenizer


def load_data(config: RunConfig) -> Data:
    """Open the shards and the tokenizer of a run; UserError if they are missing or do not fit the model.

    Every rank calls this, and each looks at its share of the training tokens.
    """
    tokenizer = Tokenizer(Path(config.data.tokenizer))
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"model.vocab_size is {config.model.vocab_size} but tokenizer {config.data.tokenizer}"
            f" has {tokenizer.vocab_size} pieces; make them equal"
        )
    m = config.model
    asks_for_bos = m.smear != "off" or m.bigram_rows or m.documents == "apart"
    if (asks_for_bos or config.data.order == "documents") and tokenizer.bos_id != m.bos_id:
        raise Mismatch(
            f"tokenizer {config.data.tokenizer} begins a document with token {tokenizer.bos_id}, but"
            f" model.bos_id is {config.model.bos_id}: set --model.bos-id {tokenizer.bos_id}"
        )
    dataset = Path(config.data.dataset)
    return Data(open_training(dataset, tokenizer), open_validation(dataset, tokenizer))


def open_training(dataset: Path, tokenizer: Tokenizer) -> TokenStream:
    """The training tokens of a dataset folder; UserError unless all of them are the tokenizer's."""
    return _open(dataset, "train", tokenizer)


def open_validation(dataset: Path, tokenizer: Tokenizer) -> Text:
    """The validation text of a dataset folder, to be scored.

    Raises UserError as `measured`, and unless shards, tokenizer, dataset.json and a sidecar, as far as
    they are there, belong together.
    """
    stream, sidecar = _open(dataset, "val", tokenizer), open_sidecar(dataset)
    require(len(stream) > 1, f"{dataset} has one validation token, which leaves none to score")
    require(
        sidecar is not None or tokenizer.transform == "none",
        f"tokenizer {tokenizer.path} writes capitals with operators (CaseOps), but {dataset} has no"
        " fineweb_val_bytes_*.bin that says how many bytes its tokens stand for; get both again",
    )
    tokens = stream.read(0, len(stream))
    text = measured(tokens, tokenizer, sidecar.read(0, len(sidecar)) if sidecar else None)
    record = read_record(dataset)
    if record is None:
        return replace(text, doubt=UNRECORDED)
    record.check_size(dataset, "val", "bytes", text.bytes)
    return text


def _open(dataset: Path, split: Literal["train", "val"], tokenizer: Tokenizer) -> TokenStream:
    stream, record = open_split(dataset, split), read_record(dataset)
    if record:
        record.check(dataset, tokenizer)
        record.check_size(dataset, split, "tokens", len(stream))
    # Each rank looks at some of the shards, and all of them learn what it finds.
    (at,) = distributed.agree(
        float(stream.find_above(tokenizer.vocab_size - 1, launch.rank(), launch.world_size()))
    )
    if at >= 0:
        path, offset = stream.locate(int(at))
        raise Mismatch(
            f"{path} holds token {stream.read(int(at), 1)[0]} at position {offset:,}, but tokenizer"
            f" {tokenizer.path} has {tokenizer.vocab_size} pieces: it was made with another"
        )
    return stream
