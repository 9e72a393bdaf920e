"""Token shards in the challenge's file format, and the endless stream that several of them form."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from pargolf.system.errors import UserError
from pargolf.system.files import write_atomic

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 1024  # 256 little-endian int32: magic, version, number of tokens, zeros
SHARD_TOKENS = 100_000_000  # most tokens a shard, as published
SIDECAR = "val_bytes"  # in its files' names, where those of tokens have their split
PART = 16_000_000  # tokens looked at in one go
_REMAKE = "download or make it again with `pargolf data`"


def shard_name(split: str, index: int) -> str:
    """File name of a shard; always fineweb_*, so that published scripts read our folders too."""
    return f"fineweb_{split}_{index:06d}.bin"


class ShardWriter:
    """Writes tokens as the shards of a split, SHARD_TOKENS each, into a folder that nobody reads yet."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.files: dict[str, int] = {}
        """Size in bytes of each file, by its name."""
        self.tokens = 0
        self._file: BinaryIO | None = None

    def write(self, tokens: np.ndarray) -> None:
        """Append tokens (n,), values in 0 .. 65535."""
        while len(tokens):
            room = SHARD_TOKENS - self.tokens % SHARD_TOKENS
            if self._file is None:
                self._file = open(self.folder / shard_name(self.split, len(self.files)), "wb")  # noqa: SIM115
                self._file.write(bytes(HEADER_BYTES))
            self._file.write(tokens[:room].astype("<u2").tobytes())
            self.tokens += len(tokens[:room])
            if len(tokens) >= room:
                self.close()
            tokens = tokens[room:]

    def close(self) -> None:
        """End the shard at hand: its header says how many tokens it holds."""
        if self._file is None:
            return
        size = self._file.tell()
        self._file.seek(0)
        self._file.write(_header((size - HEADER_BYTES) // 2))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self.files[shard_name(self.split, len(self.files))] = size


def _header(count: int) -> bytes:
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = MAGIC, VERSION, count
    return header.tobytes()


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write token ids, shape (n,) and values in 0 .. 65535, as one shard, atomically."""
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < 65_536:
        raise ValueError("token ids of a shard must fit in 16 bits")
    write_atomic(path, _header(len(tokens)) + tokens.astype("<u2").tobytes())


def read_header(path: Path) -> int:
    """Number of tokens in the shard, of which magic, version and file size have been checked.

    Raises UserError if the file cannot be read, is no shard, or is cut short or too long.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(HEADER_BYTES)
            size = file.seek(0, 2)
    except OSError as error:
        raise UserError(f"cannot read shard {path}: {error.strerror}") from None
    if len(raw) < HEADER_BYTES:
        raise UserError(f"{path} is truncated within its {HEADER_BYTES}-byte header; {_REMAKE}")
    magic, version, count = (int(value) for value in np.frombuffer(raw, "<i4", 3))
    if magic != MAGIC:
        raise UserError(f"{path} is not a token shard: magic number {magic}, not {MAGIC}; {_REMAKE}")
    if version != VERSION:
        raise UserError(f"{path} is a shard of version {version}; only version {VERSION} is known; {_REMAKE}")
    if count < 1:
        raise UserError(f"{path} holds {count} tokens; {_REMAKE}")
    missing = HEADER_BYTES + 2 * count - size
    if missing > 0:
        raise UserError(f"{path} is truncated: {missing} bytes are missing; {_REMAKE}")
    if missing < 0:
        raise UserError(f"{path} has {-missing} bytes more than its header says; {_REMAKE}")
    return count


def open_shard(path: Path) -> np.memmap:
    """The tokens of a shard, shape (n,) uint16, mapped and not loaded; UserError as `read_header`."""
    return np.memmap(path, "<u2", mode="r", offset=HEADER_BYTES, shape=(read_header(path),))


class TokenStream:
    """Shards in name order as one stream of tokens that starts again after its end."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Check and map the shards at `paths`; UserError as `read_header`."""
        self.paths = sorted(paths, key=lambda path: path.name)
        self._shards = [open_shard(path) for path in self.paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def __len__(self) -> int:
        """Tokens before the stream repeats."""
        return int(self._ends[-1])

    @property
    def sizes(self) -> list[int]:
        """Tokens of each shard."""
        return [len(shard) for shard in self._shards]

    def find(self, token: int) -> np.ndarray:
        """Positions of a token id in the whole stream, ascending."""
        parts = (
            start + np.flatnonzero(self.read(start, min(PART, len(self) - start)) == token)
            for start in range(0, len(self), PART)
        )
        return np.concatenate(list(parts))

    def find_above(self, limit: int, share: int = 0, shares: int = 1) -> int:
        """Position of a token id above `limit`, or -1; reads every `shares`-th part of the stream, from
        `share` on."""
        for start in range(share * PART, len(self), shares * PART):
            part = self.read(start, min(PART, len(self) - start))
            if part.max() > limit:
                return start + int(np.argmax(part > limit))
        return -1

    def locate(self, position: int) -> tuple[Path, int]:
        """The shard that holds a token of the stream, and the token's position in it."""
        index = int(np.searchsorted(self._ends, position, side="right"))
        return self.paths[index], position - int(self._ends[index]) + len(self._shards[index])

    def read(self, offset: int, count: int) -> np.ndarray:
        """`count` tokens from `offset` on, shape (count,) uint16; both may be larger than the stream."""
        tokens = np.empty(count, np.uint16)
        done = 0
        while done < count:
            at = (offset + done) % len(self)
            index = int(np.searchsorted(self._ends, at, side="right"))
            shard = self._shards[index]
            part = shard[at - int(self._ends[index]) + len(shard) :][: count - done]
            tokens[done : done + len(part)] = part
            done += len(part)
        return tokens


def open_split(dataset: Path, split: Literal["train", "val"]) -> TokenStream:
    """The stream of all `split` shards in the folder `dataset`; UserError if it has none."""
    paths = list(Path(dataset).glob(f"fineweb_{split}_[0-9]*.bin"))
    if not paths:
        raise UserError(
            f"no fineweb_{split}_*.bin in {dataset}; get them with `pargolf data`, or name their folder"
            " (--dataset; in training --data.dataset)"
        )
    return TokenStream(paths)


def open_sidecar(dataset: Path) -> TokenStream | None:
    """The bytes that each validation token stands for, in shards of their own beside the tokens'.

    Data whose text was transformed before tokenizing (CaseOps) has them; None where there is none.
    """
    paths = list(Path(dataset).glob(f"fineweb_{SIDECAR}_[0-9]*.bin"))
    return TokenStream(paths) if paths else None
