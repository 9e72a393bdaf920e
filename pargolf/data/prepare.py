"""From documents to a dataset folder: split, tokenizer, shards, and a record of how they were made."""

import hashlib
import json
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
from pargolf.data.shards import HEADER_BYTES, SHARD_TOKENS, TokenStream, shard_name, write_shard
from pargolf.data.tokenizer import Tokenizer, train_tokenizer
from pargolf.system.errors import UserError
from pargolf.system.files import sha256_file, write_json

DATA_ROOT = Path("data")
RECORD = "dataset.json"  # written last: a folder that has it is complete


@dataclass(frozen=True)
class PreparedData:
    """A dataset folder that is ready to train on."""

    dataset: Path
    """Folder with the shards and dataset.json."""
    tokenizer: Path
    record: dict[str, Any]
    """Content of dataset.json: recipe, hashes, and documents, tokens and bytes of each split."""
    made: bool
    """False if everything was there already."""

    def summary(self) -> str:
        """One line: where it is, and how much of it."""
        train, val = (self.record["splits"][split] for split in ("train", "val"))
        return (
            f"{self.dataset}: {'made' if self.made else 'already there'};"
            f" train {train['documents']:,} documents, {train['tokens']:,} tokens, {train['bytes']:,} bytes;"
            f" val {val['documents']:,} documents, {val['tokens']:,} tokens, {val['bytes']:,} bytes"
        )


def prepare_embedded(
    vocab_size: int = 1024, val_fraction: float = 0.1, root: Path = DATA_ROOT
) -> PreparedData:
    """The embedded articles as the dataset `demo_sp{vocab_size}`; UserError as `embedded_documents`."""
    # The known hash of the source stands for the documents, so that a second call parses nothing.
    source = {"embedded_sha256": EMBEDDED_SHA256, "cleaning": EMBEDDED_CLEANING}
    return _prepare("demo", source, embedded_documents, vocab_size, val_fraction, root)


def prepare_files(
    name: str,
    files: Sequence[Path],
    vocab_size: int = 1024,
    val_fraction: float = 0.1,
    separator: str | None = None,
    root: Path = DATA_ROOT,
) -> PreparedData:
    """The user's own text files as the dataset `{name}_sp{vocab_size}`; UserError as `read_documents`."""
    documents = read_documents(files, separator)
    source = {"documents_sha256": _documents_sha256(documents)}
    return _prepare(name, source, lambda: documents, vocab_size, val_fraction, root)


def _prepare(
    name: str,
    source: dict[str, Any],
    load: Callable[[], list[str]],
    vocab_size: int,
    val_fraction: float,
    root: Path,
) -> PreparedData:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"dataset name {name!r}: use letters, digits, '_', '-' and '.' only")
    dataset = root / "datasets" / f"{name}_sp{vocab_size}"
    model = root / "tokenizers" / f"{name}_{vocab_size}_bpe.model"
    recipe = {"name": name, "source": source, "vocab_size": vocab_size, "val_fraction": val_fraction}
    record = _finished(dataset, model, recipe)
    if record:
        return PreparedData(dataset, model, record, made=False)

    documents = load()
    splits = dict(zip(("train", "val"), split_documents(documents, val_fraction), strict=True))
    # From here on the folder is incomplete, whatever it was before.
    (dataset / RECORD).unlink(missing_ok=True)
    for stale in dataset.glob("fineweb_*.bin"):
        stale.unlink()
    train_tokenizer(splits["train"], vocab_size, model)
    tokenizer = Tokenizer(model)
    record = {
        "recipe": recipe,
        "documents_sha256": _documents_sha256(documents),
        "tokenizer": model.name,
        "tokenizer_sha256": tokenizer.sha256,
        "splits": {split: _write_split(dataset, split, texts, tokenizer) for split, texts in splits.items()},
    }
    write_json(dataset / RECORD, record)
    return PreparedData(dataset, model, record, made=True)


def _finished(dataset: Path, model: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a complete dataset of this recipe, if there is one."""
    try:
        record: dict[str, Any] = json.loads((dataset / RECORD).read_text())
        sizes = {name: size for split in record["splits"].values() for name, size in split["files"].items()}
        whole = (
            record["recipe"] == recipe
            and sha256_file(model) == record["tokenizer_sha256"]
            and {path.name: path.stat().st_size for path in dataset.glob("fineweb_*.bin")} == sizes
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing or damaged: made anew
    return record if whole else None


def _write_split(dataset: Path, split: str, documents: list[str], tokenizer: Tokenizer) -> dict[str, Any]:
    """Write the shards of one split; returns its counts and the size in bytes of each file."""
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
    return {"documents": len(documents), "tokens": len(tokens), "bytes": size, "files": files}


def _documents_sha256(documents: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in documents:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)  # the length marks where documents end
    return digest.hexdigest()


def read_text(stream: TokenStream, tokenizer: Tokenizer) -> bytes:
    """UTF-8 text of a whole stream: its documents one after the other, nothing for BOS.

    Raises UserError if the tokens are not of this tokenizer.
    """
    return decode_documents(stream.read(0, len(stream)), tokenizer)


def decode_documents(tokens: np.ndarray, tokenizer: Tokenizer) -> bytes:
    """UTF-8 text of tokens (N,), as `read_text`."""
    # Document by document: some tokenizers drop a space at the start of each.
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.bos_id))
    return "".join(tokenizer.decode(document.tolist()) for document in documents).encode()
