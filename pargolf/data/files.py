"""The user's own files as a stream of documents, however long: nothing is held but the document at hand."""

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from pargolf.system.errors import UserError
from pargolf.system.progress import OnProgress, unseen

BLOCK = 4 << 20  # bytes read at once
ZSTD_BLOCK = 1 << 16  # packed bytes; what they unpack to is held whole
PARAGRAPH = "\n\n"
PLAIN, LINES, PARQUET = (".txt", ".md"), ".jsonl", ".parquet"


class _Zstd:
    """Reads a .zst file of any number of frames. Unlike zstandard's reader it says if the last is cut off."""

    def __init__(self, file: BinaryIO):
        self._file, self._rest = file, b""
        self._frame: Any = None  # that has begun and not ended

    def __enter__(self) -> "_Zstd":
        return self

    def __exit__(self, *error: object) -> None:
        self._frame = None

    def read(self, size: int) -> bytes:
        """The next text, however much; b"" at the end. EOFError if that is inside a frame."""
        while block := self._rest or self._file.read(ZSTD_BLOCK):
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            text: bytes = self._frame.decompress(block)
            self._rest = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
            if text:
                return text
        if self._frame is not None:
            raise EOFError("it ends too early")
        return b""


DECOMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open, ".zst": _Zstd, ".xz": lzma.open, ".bz2": bz2.open,
}  # fmt: skip


@dataclass(frozen=True)
class TextFiles:
    """Files of text, and the text at which plain ones are cut into documents (None: they are not cut)."""

    paths: tuple[Path, ...]
    separator: str | None = None
    cut: bool = False
    """The separator was not asked for: a single plain file is cut at empty lines."""

    def documents(self, progress: OnProgress = unseen) -> Iterator[str]:
        """The documents in the order of the files, empty ones left out.

        A .jsonl file holds one document a line in the field "text", a .parquet file one a row in the
        column "text"; any other file is one UTF-8 document, or as many as the separator cuts it into.
        Each may be compressed (.gz, .zst, .xz, .bz2), .parquet in its own way. `progress` is called with
        bytes read and bytes in all. Raises UserError on a missing or damaged file, invalid UTF-8, or a
        malformed line.
        """
        sizes = [_size(path) for path in self.paths]
        done = 0
        for path, size in zip(self.paths, sizes, strict=True):
            start = done
            read = _reader(path)
            for text, position in read(path, self.separator):
                if text.strip():
                    yield text
                progress(start + position, sum(sizes))
            done += size


def find_files(named: Sequence[Path]) -> list[Path]:
    """The files named, and those of text in the folders named, in order of their names.

    Raises UserError if a folder holds none.
    """
    found: list[Path] = []
    for path in named:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.is_file() and _is_text(file))
        if not inside:
            raise UserError(
                f"{path} holds no text: no {', '.join((*PLAIN, LINES, PARQUET))}, also compressed"
            )
        found += inside
    return found


def text_files(named: Sequence[Path], separator: str | None = None) -> TextFiles:
    """The text of files and folders, as `TextFiles.documents` reads it.

    A single plain file without a separator is cut at empty lines. In `separator`, \\n, \\t, \\r and \\\\
    mean what they mean in Python. Raises UserError as `find_files`, and if the separator is empty.
    """
    if separator == "":
        raise UserError("the document separator is empty; give the text that stands between documents")
    paths = find_files(named)
    if separator is not None:
        escapes = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
        separator = re.sub(r"\\([ntr\\])", lambda found: escapes[found[1]], separator)
    elif len(paths) == 1 and _reader(paths[0]) is _plain_documents:
        return TextFiles(tuple(paths), PARAGRAPH, cut=True)
    return TextFiles(tuple(paths), separator)


def stem(path: Path) -> str:
    """A file's name without the endings of compression and format."""
    return path.name.removesuffix(_packing(path)).rpartition(".")[0] or path.name


def _packing(path: Path) -> str:
    return path.suffix if path.suffix in DECOMPRESSORS else ""


def _format(path: Path) -> str:
    return Path(path.name.removesuffix(_packing(path))).suffix


def _is_text(path: Path) -> bool:
    return _format(path) in (*PLAIN, LINES, PARQUET)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


Reader = Callable[[Path, str | None], Iterator[tuple[str, int]]]
"""Gives each document of a file, and how many bytes of the file have been read by then."""


def _reader(path: Path) -> Reader:
    return {LINES: _line_documents, PARQUET: _row_documents}.get(_format(path), _plain_documents)


def _plain_documents(path: Path, separator: str | None) -> Iterator[tuple[str, int]]:
    offset = 0
    for piece, position in _pieces(path, separator.encode() if separator else None):
        try:
            yield piece.decode(), position
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 text: bad byte at offset {offset + error.start}; convert it first"
            ) from None
        offset += len(piece) + len(separator.encode() if separator else b"")


def _line_documents(path: Path, separator: str | None) -> Iterator[tuple[str, int]]:
    for number, (line, position) in enumerate(_pieces(path, b"\n"), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
            document.encode()  # JSON can spell lone surrogates, which are no text
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f'{path} line {number}: not a JSON object with a string "text"') from None
        yield document, position


def _row_documents(path: Path, separator: str | None) -> Iterator[tuple[str, int]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path} needs pyarrow; install it with: pip install 'pargolf[parquet]'") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        rows, size, done = max(1, file.metadata.num_rows), _size(path), 0
        if "text" not in file.schema_arrow.names:
            raise UserError(f'{path} has no column "text"; it has {", ".join(file.schema_arrow.names)}')
        for batch in file.iter_batches(batch_size=256, columns=["text"]):
            for text in batch.column(0).to_pylist():
                done += 1
                if text is not None:
                    yield str(text), size * done // rows
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is no readable parquet file: {' '.join(str(error).split())[:200]}") from None


def _pieces(path: Path, separator: bytes | None) -> Iterator[tuple[bytes, int]]:
    """What stands between separators, with the file's position; the whole content without a separator."""
    parts: list[bytes] = []  # of the piece that is not complete
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(open(path, "rb"))
            packing = _packing(path)
            file = stack.enter_context(DECOMPRESSORS[packing](raw)) if packing else raw
            while block := file.read(BLOCK):
                if separator is None:
                    parts.append(block)
                    continue
                *whole, rest = (b"".join(parts) + block).split(separator)
                for piece in whole:
                    yield piece, raw.tell()
                parts = [rest]
            yield b"".join(parts), raw.tell()
        except (EOFError, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile) as error:
            raise UserError(f"{path} is damaged or no {path.suffix} file: {error}") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from None
