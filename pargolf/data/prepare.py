"""From documents to a dataset folder: split, tokenizer, shards, and a record of how they were made.

Documents are a stream that is read several times: once for the split, once for the tokenizer, once for
the tokens. However long it is, no more than a batch of it is held.
"""

import operator
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pargolf.data.corpus import EMBEDDED_CLEANING, EMBEDDED_SHA256, embedded_documents
from pargolf.data.files import TextFiles, stem
from pargolf.data.record import Record, Split, is_whole, read_record, write_record
from pargolf.data.shards import SIDECAR, ShardWriter
from pargolf.data.split import Survey, choose_validation, joined, sample, survey
from pargolf.data.text import measured
from pargolf.data.tokenizer import Tokenizer, Transform, train_tokenizer
from pargolf.system.errors import UserError, require
from pargolf.system.files import replaced_folder, sha256_file, write_atomic
from pargolf.system.launch import cores
from pargolf.system.progress import Bars, OnProgress, no_bar

DATA_ROOT = Path("data")
VAL_BYTES = 2_000_000
TOKENIZER_BYTES = 32_000_000  # of training text; more of it changes few pieces and takes gigabytes
BATCH_BYTES = 4 << 20  # of text, tokenized at once

TRAIN, VAL, LEFT_OUT = 0, 1, 2  # where a document goes
SPLITS = {TRAIN: "train", VAL: "val"}

# Reads the documents from the first on; tells how much of them it has read.
Documents = Callable[[OnProgress], Iterable[str]]


@dataclass(frozen=True)
class Recipe:
    """What decides a dataset: the same recipe gives the same files."""

    name: str
    vocab_size: int
    val_fraction: float
    source: dict[str, Any]

    @property
    def dataset(self) -> str:
        """Name of its folder."""
        return f"{self.name}_sp{self.vocab_size}{self._ending}"

    @property
    def tokenizer(self) -> str:
        """Name of its tokenizer's file."""
        return f"{self.name}_{self.vocab_size}_bpe{self._ending}.model"

    @property
    def transform(self) -> Transform:
        """What the text goes through before the tokenizer."""
        transform: Transform = self.source.get("transform", "none")
        return transform

    @property
    def _ending(self) -> str:
        return "" if self.transform == "none" else f"_{self.transform}"


@dataclass(frozen=True)
class PreparedData:
    """A dataset folder that is ready to train on."""

    dataset: Path
    """Folder with the shards and dataset.json."""
    tokenizer: Path
    record: Record
    made: bool
    """False if everything was there already."""
    notes: tuple[str, ...] = ()
    """What a user may not expect, a sentence each."""

    def summary(self) -> str:
        """One line: where it is, and how much of it; then one for each note."""
        sizes = "; ".join(
            f"{name} {split.documents:,} documents, {split.tokens:,} tokens, {split.bytes:,} bytes"
            for name, split in self.record.splits.items()
        )
        state = "made" if self.made else "already there"
        return "\n".join((f"{self.dataset}: {state}; {sizes}", *(f"note: {note}" for note in self.notes)))


def prepare_embedded(
    vocab_size: int = 1024,
    val_fraction: float = 0.1,
    root: Path = DATA_ROOT,
    overwrite: bool = False,
    transform: Transform = "none",
) -> PreparedData:
    """The embedded articles as the dataset `demo_sp{vocab_size}`; UserError as `embedded_documents`, and if
    another dataset of that name is there and may not be overwritten."""
    # The known hash of the source stands for the documents, so that a second call parses nothing.
    source = {"embedded_sha256": EMBEDDED_SHA256, "cleaning": EMBEDDED_CLEANING} | _stated(transform)
    recipe = Recipe("demo", vocab_size, val_fraction, source)

    def make(folder: Path, model: Path) -> Record:
        articles = embedded_documents()
        found = survey(articles)
        sides = np.where(choose_validation(found, val_fraction), VAL, TRAIN)
        return _make(folder, model, recipe, lambda progress: articles, found, sides)[0]

    return _prepared(recipe, make, root, overwrite, ())


def prepare_files(
    text: TextFiles,
    name: str = "",
    vocab_size: int = 1024,
    val_fraction: float = 0.1,
    val_bytes: int = VAL_BYTES,
    val: TextFiles | None = None,
    tokenizer: Path | None = None,
    root: Path = DATA_ROOT,
    overwrite: bool = False,
    bars: Bars = no_bar,
    transform: Transform = "none",
) -> PreparedData:
    """The user's own text as the dataset `{name}_sp{vocab_size}`, by default named after the first file.

    Held out is the text of `val`, or a share of the documents of up to `val_bytes` (0: no limit). The
    tokenizer is trained on training documents, or read from the file `tokenizer`, which has its own
    `transform`. Raises UserError as `TextFiles.documents`, `choose_validation` and `train_tokenizer`, and if
    another dataset of that name is there and may not be overwritten.
    """
    name = name or re.sub(r"[^A-Za-z0-9_.-]+", "_", stem(text.paths[0])).lstrip("_.-") or "text"

    def documents(progress: OnProgress) -> Iterable[str]:
        return chain(text.documents(progress), val.documents() if val else ())

    with bars("reading") as bar:
        found = survey(text.documents(bar))
    require(len(found) > 0, f"no text in {', '.join(map(str, text.paths))}")
    given = Tokenizer(tokenizer) if tokenizer else None
    source: dict[str, Any] = {"documents_sha256": found.sha256}
    if given:
        require(
            given.vocab_size <= 65_536,
            f"{tokenizer} has {given.vocab_size:,} pieces, but shards hold 16-bit ids: 65,536 at most",
        )
        require(
            transform in ("none", given.transform),
            f"the pieces of {tokenizer} are of the transform {given.transform}, not of {transform}",
        )
        transform = given.transform
        source["tokenizer_sha256"] = given.sha256
    source |= _stated(transform)
    if val:
        held_out = survey(val.documents())
        require(len(held_out) > 0, f"no text in {', '.join(map(str, val.paths))}")
        source["validation_sha256"] = held_out.sha256
        sides = _fixed(found, held_out)
        found = joined(found, held_out)
    else:
        sides = np.where(choose_validation(found, val_fraction, val_bytes), VAL, TRAIN)
        if (sides != np.where(choose_validation(found, val_fraction), VAL, TRAIN)).any():
            source["val_bytes"] = val_bytes
    if found.equal:
        source["equal_documents"] = "on one side"  # a dataset that splits them is another one
    recipe = Recipe(name, given.vocab_size if given else vocab_size, val_fraction, source)
    changed = 0

    def make(folder: Path, model: Path) -> Record:
        nonlocal changed
        if given:
            write_atomic(model, given.path.read_bytes())
        record, changed = _make(folder, model, recipe, documents, found, sides, bars)
        return record

    done = _prepared(recipe, make, root, overwrite, _notes(text, found, sides, recipe))
    if changed:
        note = f"{tokenizer} changes {changed:,} documents; bits per byte are of the text that it writes"
        done = replace(done, notes=(*done.notes, note))
    return done


def _stated(transform: Transform) -> dict[str, str]:
    """What the recipe of transformed text says of it, and that of any other does not."""
    return {} if transform == "none" else {"transform": transform}


def _fixed(found: Survey, held_out: Survey) -> np.ndarray:
    """Where documents go if those of `held_out` follow and are the validation text: copies go nowhere."""
    copies = np.isin(found.digests, held_out.digests)
    require(not copies.all(), "no training text is left: all of it is validation text, too")
    return np.concatenate((np.where(copies, LEFT_OUT, TRAIN), np.full(len(held_out), VAL)))


def _notes(text: TextFiles, found: Survey, sides: np.ndarray, recipe: Recipe) -> tuple[str, ...]:
    notes = []
    if text.cut:
        notes.append(
            f"{text.paths[0]} is one text: it is cut at empty lines into {len(found):,} documents"
            " (--separator cuts it elsewhere)"
        )
    if found.equal:
        notes.append(f"{found.equal:,} documents equal others and lie on their side")
    if left_out := int((sides == LEFT_OUT).sum()):
        notes.append(f"{left_out:,} training documents equal validation documents and are left out")
    if "val_bytes" in recipe.source:
        most, held = recipe.source["val_bytes"], int(found.sizes[sides == VAL].sum())
        limited = f"validation text is limited to {most:,} bytes (--val-bytes)"
        notes.append(
            limited if held <= most else f"{limited}, but the least that can be held out has {held:,}"
        )
    if found.sizes[sides == TRAIN].sum() > TOKENIZER_BYTES and "tokenizer_sha256" not in recipe.source:
        notes.append(f"the tokenizer learns from {TOKENIZER_BYTES:,} bytes of the training text")
    return tuple(notes)


def _prepared(
    recipe: Recipe,
    make: Callable[[Path, Path], Record],
    root: Path,
    overwrite: bool,
    notes: tuple[str, ...],
) -> PreparedData:
    """The dataset of a recipe, made if it is not there."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", recipe.name):
        raise UserError(f"dataset name {recipe.name!r}: use letters, digits, '_', '-' and '.' only")
    dataset = root / "datasets" / recipe.dataset
    model = root / "tokenizers" / recipe.tokenizer
    if dataset.exists() and any(dataset.iterdir()) and not overwrite:
        record = _record_of(dataset, recipe)
        if model.exists() and sha256_file(model) == record.tokenizer_sha256 and is_whole(record, dataset):
            return PreparedData(dataset, model, record, made=False, notes=notes)
    # What is there otherwise is a damaged copy of what will be made, or may be overwritten.
    with tempfile.TemporaryDirectory() as place, replaced_folder(dataset) as folder:
        draft = Path(place) / model.name  # nothing is replaced before all is made
        record = make(folder, draft)
        write_atomic(model, draft.read_bytes())
    return PreparedData(dataset, model, record, made=True, notes=notes)


def _record_of(dataset: Path, recipe: Recipe) -> Record:
    """The record of a dataset of this recipe; UserError if the folder holds anything else."""
    record = read_record(dataset)
    if record is None or record.recipe != asdict(recipe):
        raise UserError(
            f"{dataset} holds a dataset of other text or settings; choose another --name, or replace it with"
            " `pargolf data --overwrite`"
        )
    return record


def _make(
    folder: Path,
    model: Path,
    recipe: Recipe,
    documents: Documents,
    found: Survey,
    sides: np.ndarray,
    bars: Bars = no_bar,
) -> tuple[Record, int]:
    """Fill a folder with shards and record, and write the tokenizer to `model` unless the recipe has one.

    Also returns how many documents come back changed from the tokenizer.
    """
    if "tokenizer_sha256" not in recipe.source:
        learned = sample(found, sides == TRAIN, TOKENIZER_BYTES)
        with bars("training the tokenizer") as bar:
            texts = [text for text, learn in zip(documents(bar), learned, strict=True) if learn]
            train_tokenizer(texts, recipe.vocab_size, model, recipe.transform)
    tokenizer = Tokenizer(model)
    with bars("tokenizing") as bar:
        splits, changed = _write(folder, tokenizer, zip(documents(bar), sides, strict=True))
    if changed and "tokenizer_sha256" not in recipe.source:
        raise UserError(f"the tokenizer does not reproduce {changed:,} documents; report this")
    record = Record(asdict(recipe), model.name, tokenizer.sha256, splits, found.equal, recipe.transform)
    write_record(folder, record)
    return record, changed


def _write(
    folder: Path, tokenizer: Tokenizer, documents: Iterable[tuple[str, int]]
) -> tuple[dict[str, Split], int]:
    """Write the shards of documents, each with where it goes, and count those that come back changed.

    Of transformed text the sidecar of the validation tokens is among its shards.
    """
    writers = {side: ShardWriter(folder, split) for side, split in SPLITS.items()}
    sidecar = None if tokenizer.transform == "none" else ShardWriter(folder, SIDECAR)
    counts, sizes, changed = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0), 0
    threads = cores()
    for batch in _batches(documents):
        for side, writer in writers.items():
            texts = [text for text, goes in batch if goes == side]
            if not texts:
                continue
            ids = tokenizer.encode_all(texts, threads)
            changed += sum(map(operator.ne, texts, tokenizer.decode_all(ids, threads)))
            tokens = np.concatenate([np.array([tokenizer.bos_id, *part], np.uint16) for part in ids])
            writer.write(tokens)
            counts[side] += len(texts)
            text = measured(tokens, tokenizer)
            sizes[side] += text.bytes
            if sidecar and side == VAL:
                sidecar.write(text.sizes)
    for writer in writers.values():
        writer.close()
    if sidecar:
        sidecar.close()
        writers[VAL].files |= sidecar.files
    splits = {
        split: Split(writers[side].tokens, writers[side].files, sizes[side], counts[side])
        for side, split in SPLITS.items()
    }
    return splits, changed


def _batches(documents: Iterable[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    batch: list[tuple[str, int]] = []
    size = 0
    for text, side in documents:
        batch.append((text, side))
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
