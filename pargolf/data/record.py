"""dataset.json: what a dataset folder says of itself, and whether shards and tokenizer agree with it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pargolf.data.tokenizer import Tokenizer, Transform
from pargolf.system.errors import Mismatch, UserError, did_you_mean
from pargolf.system.files import write_json

RECORD = "dataset.json"  # written last: a folder that has it is complete


@dataclass(frozen=True)
class Split:
    """One split's shards: their tokens, and the size in bytes of each file."""

    tokens: int
    files: dict[str, int]
    bytes: int | None = None
    """UTF-8 bytes of the text, where they are known."""
    documents: int | None = None


@dataclass(frozen=True)
class Record:
    """Content of dataset.json."""

    recipe: dict[str, Any]
    """What the dataset was made of, and how; the same recipe gives the same files."""
    tokenizer: str
    """Name of its file."""
    tokenizer_sha256: str
    splits: dict[str, Split]
    equal_documents: int = 0
    """Documents whose text another one has, too; equal documents lie in one split."""
    transform: Transform = "none"
    """What the text went through before the tokenizer."""

    def check(self, dataset: Path, tokenizer: Tokenizer) -> None:
        """Mismatch unless the shards of the folder `dataset` are this tokenizer's."""
        if tokenizer.sha256 != self.tokenizer_sha256:
            raise Mismatch(
                f"{dataset} was made with another tokenizer than {tokenizer.path}: with {self.tokenizer},"
                f" SHA-256 {self.tokenizer_sha256[:12]} and not {tokenizer.sha256[:12]}; name that one"
            )
        if tokenizer.transform != self.transform:
            raise Mismatch(
                f"{dataset} holds text of the transform {self.transform}, by its {RECORD}, but the pieces of"
                f" {tokenizer.path} are of {tokenizer.transform}; make it again with `pargolf data`"
            )

    def check_size(
        self, dataset: Path, split: Literal["train", "val"], what: Literal["tokens", "bytes"], found: int
    ) -> None:
        """Mismatch unless a split holds as many tokens, or bytes, as were written."""
        wanted = getattr(self.splits[split], what) if split in self.splits else None
        if wanted not in (None, found):
            raise Mismatch(
                f"{dataset} holds {found:,} {split} {what}, but its {RECORD} says {wanted:,}: its shards have"
                " been replaced; make it again with `pargolf data`"
            )


def write_record(dataset: Path, record: Record) -> None:
    """Write dataset.json, atomically."""
    content: dict[str, Any] = {
        "recipe": record.recipe,
        "tokenizer": record.tokenizer,
        "tokenizer_sha256": record.tokenizer_sha256,
        "splits": {name: _known(split) for name, split in record.splits.items()},
    }
    if record.equal_documents:
        content["equal_documents"] = record.equal_documents
    if record.transform != "none":
        content["transform"] = record.transform
    write_json(dataset / RECORD, content)


def _known(split: Split) -> dict[str, Any]:
    return {name: value for name, value in vars(split).items() if value is not None}


def read_record(dataset: Path) -> Record | None:
    """The record of a dataset folder; None if it has none, as shards from elsewhere. UserError if damaged."""
    path = dataset / RECORD
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        splits = {str(name): Split(**split) for name, split in content["splits"].items()}
        for split in splits.values():
            sizes = [split.tokens, *split.files.values(), split.bytes or 0, split.documents or 0]
            if not all(isinstance(size, int) and size >= 0 for size in sizes):
                raise ValueError("a size is no whole number")
        return Record(
            dict(content["recipe"]), str(content["tokenizer"]), str(content["tokenizer_sha256"]), splits,
            int(content.get("equal_documents", 0)), content.get("transform", "none"),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}); make the dataset again with"
            " `pargolf data --overwrite`"
        ) from None


def find_dataset(name: str, root: Path) -> tuple[Path, Path]:
    """The folder of a dataset and its tokenizer, by the folder's path or by its name in root/datasets.

    "mine" finds mine_sp1024, too, if no other vocabulary of it is there. Raises UserError if there is no
    such dataset, or several, or if it has no dataset.json.
    """
    its = re.compile(re.escape(name) + "_sp[0-9]")  # no pattern of files: an absolute path is none
    named = [path for path in sorted((root / "datasets").glob("*_sp*")) if its.match(path.name)]
    places = [Path(name), root / "datasets" / name, *named]
    there_is = [place for place in places if place.is_dir()]
    found = [place for place in there_is if (place / RECORD).exists()] or there_is[:1]
    if not found:
        there = sorted(path.name for path in (root / "datasets").glob("*/"))
        raise UserError(
            f"there is no dataset {name} in {root / 'datasets'}{did_you_mean(name, there)} (it has"
            f" {', '.join(there) or 'none'}); make one with `pargolf data --text FILES`"
        )
    if len(found) > 1 and found[0] not in places[:2]:
        raise UserError(f"several datasets are called {name}: {', '.join(path.name for path in found)}")
    dataset = found[0]
    record = read_record(dataset)
    if record is None:
        raise UserError(
            f"{dataset} has no {RECORD} that names its tokenizer; give --data.dataset and --data.tokenizer"
        )
    return dataset, dataset.parent.parent / "tokenizers" / record.tokenizer


def is_whole(record: Record, dataset: Path) -> bool:
    """Whether the folder holds exactly the shards of its record, by their names and sizes."""
    sizes = {name: size for split in record.splits.values() for name, size in split.files.items()}
    return {path.name: path.stat().st_size for path in dataset.glob("fineweb_*.bin")} == sizes
