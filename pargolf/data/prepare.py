"""From documents to a dataset folder: split, tokenizer, shards, and a record of how they were made."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pargolf.data.corpus import (
    EMBEDDED_CLEANING,
    EMBEDDED_SHA256,
    embedded_documents,
    read_documents,
    split_documents,
)
from pargolf.data.record import Record, Split, is_whole, read_record, write_record
from pargolf.data.shards import HEADER_BYTES, SHARD_TOKENS, shard_name, write_shard
from pargolf.data.tokenizer import Tokenizer, train_tokenizer
from pargolf.system.errors import UserError
from pargolf.system.files import replaced_folder, sha256_file

DATA_ROOT = Path("data")


@dataclass(frozen=True)
class PreparedData:
    """A dataset folder that is ready to train on."""

    dataset: Path
    """Folder with the shards and dataset.json."""
    tokenizer: Path
    record: Record
    made: bool
    """False if everything was there already."""

    def summary(self) -> str:
        """One line: where it is, and how much of it."""
        sizes = "; ".join(
            f"{name} {split.documents:,} documents, {split.tokens:,} tokens, {split.bytes:,} bytes"
            for name, split in self.record.splits.items()
        )
        equal = self.record.equal_documents
        repeated = f"; {equal:,} documents equal others and lie on their side" if equal else ""
        return f"{self.dataset}: {'made' if self.made else 'already there'}; {sizes}{repeated}"


def prepare_embedded(
    vocab_size: int = 1024, val_fraction: float = 0.1, root: Path = DATA_ROOT, overwrite: bool = False
) -> PreparedData:
    """The embedded articles as the dataset `demo_sp{vocab_size}`; UserError as `embedded_documents`, and if
    another dataset of that name is there and may not be overwritten."""
    # The known hash of the source stands for the documents, so that a second call parses nothing.
    source = {"embedded_sha256": EMBEDDED_SHA256, "cleaning": EMBEDDED_CLEANING}
    return _prepare("demo", source, embedded_documents, vocab_size, val_fraction, root, overwrite)


def prepare_files(
    name: str,
    files: Sequence[Path],
    vocab_size: int = 1024,
    val_fraction: float = 0.1,
    separator: str | None = None,
    root: Path = DATA_ROOT,
    overwrite: bool = False,
) -> PreparedData:
    """The user's own text files as the dataset `{name}_sp{vocab_size}`; UserError as `read_documents`, and if
    another dataset of that name is there and may not be overwritten."""
    documents = read_documents(files, separator)
    source: dict[str, Any] = {"documents_sha256": _documents_sha256(documents)}
    if len(set(documents)) < len(documents):
        source["equal_documents"] = "on one side"  # a dataset that splits them is another one
    return _prepare(name, source, lambda: documents, vocab_size, val_fraction, root, overwrite)


def _prepare(
    name: str,
    source: dict[str, Any],
    load: Callable[[], list[str]],
    vocab_size: int,
    val_fraction: float,
    root: Path,
    overwrite: bool,
) -> PreparedData:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"dataset name {name!r}: use letters, digits, '_', '-' and '.' only")
    dataset = root / "datasets" / f"{name}_sp{vocab_size}"
    model = root / "tokenizers" / f"{name}_{vocab_size}_bpe.model"
    recipe = {"name": name, "source": source, "vocab_size": vocab_size, "val_fraction": val_fraction}
    if dataset.exists() and any(dataset.iterdir()) and not overwrite:
        record = _record_of(dataset, recipe)
        if model.exists() and sha256_file(model) == record.tokenizer_sha256 and is_whole(record, dataset):
            return PreparedData(dataset, model, record, made=False)
    # What is there otherwise is a damaged copy of what will be made, or may be overwritten.
    with replaced_folder(dataset) as folder:
        record = _make(folder, model, recipe, load())
    return PreparedData(dataset, model, record, made=True)


def _record_of(dataset: Path, recipe: dict[str, Any]) -> Record:
    """The record of a dataset of this recipe; UserError if the folder holds anything else."""
    record = read_record(dataset)
    if record is None or record.recipe != recipe:
        raise UserError(
            f"{dataset} holds a dataset of other text or settings; choose another --name, or replace it with"
            " `pargolf data --overwrite`"
        )
    return record


def _make(folder: Path, model: Path, recipe: dict[str, Any], documents: list[str]) -> Record:
    """Fill a folder with the shards and the record of `documents`, and write the tokenizer to `model`."""
    splits = dict(zip(("train", "val"), split_documents(documents, recipe["val_fraction"]), strict=True))
    train_tokenizer(splits["train"], recipe["vocab_size"], model)
    tokenizer = Tokenizer(model)
    record = Record(
        recipe,
        model.name,
        tokenizer.sha256,
        {split: _write_split(folder, split, texts, tokenizer) for split, texts in splits.items()},
        len(documents) - len(set(documents)),
    )
    write_record(folder, record)
    return record


def _write_split(dataset: Path, split: str, documents: list[str], tokenizer: Tokenizer) -> Split:
    """Write the shards of one split."""
    pieces = []
    for text in documents:
        ids = tokenizer.encode(text)
        if tokenizer.decode(ids) != text:
            raise UserError(
                f"the tokenizer does not reproduce the document that begins {text[:60]!r}; report this"
            )
        pieces.append(np.array([tokenizer.bos_id, *ids], np.uint16))
    tokens = np.concatenate(pieces)
    files = {}
    for index, start in enumerate(range(0, len(tokens), SHARD_TOKENS)):
        shard = tokens[start : start + SHARD_TOKENS]
        write_shard(dataset / shard_name(split, index), shard)
        files[shard_name(split, index)] = HEADER_BYTES + 2 * len(shard)
    size = sum(len(text.encode()) for text in documents)
    return Split(len(tokens), files, size, len(documents))


def _documents_sha256(documents: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in documents:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)  # the length marks where documents end
    return digest.hexdigest()
