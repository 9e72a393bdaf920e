"""The .pgc file: what a compressed file says about itself, and its coded tokens (docs/compress.md)."""

import json
import re
import struct
import zlib
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from pargolf.export.codec import compress, decompress
from pargolf.system.errors import UserError, require

MAGIC = b"pgc\0"
VERSION = 1
PREFIX = struct.Struct("<4sHHH")  # magic, version, bytes of the header, compressed and raw
CHECKSUM = struct.Struct("<I")  # CRC-32 of everything before
MAX_RAW_HEADER = 4096
MAX_STREAMS = 1024
MAX_THREADS = 256
MAX_STEPS = 64


@dataclass(frozen=True)
class FileHeader:
    """Everything but the coded tokens that decoding needs, beside the model."""

    model: str
    """SHA-256 of the model file, hex."""
    sha256: str
    """Of the original file, hex."""
    bytes: int
    """Of the original file."""
    tokens: int
    streams: int
    keep: int
    """Tokens of context that are left when it was full."""
    dtype: str
    """In which the model computes: "float32" or "bfloat16"."""
    threads: int
    """CPU threads, which may decide in which order floats are added."""
    machine: str
    """Where it was made, for a person whose machine computes other floats."""
    rate: float = 0.0
    """Learning rate of the model's weights; 0: nothing learns from what has been coded."""
    steps: int = 0
    """Steps of learning whenever a context is full."""
    probe: str = ""
    """Hash of a made-up text's distributions, hex: whether a machine computes the same floats."""

    def __post_init__(self) -> None:
        """UserError unless every figure is one that can be."""
        for digest in (self.model, self.sha256):
            require(bool(re.fullmatch("[0-9a-f]{64}", digest)), "a hash is not 64 lower-case hex digits")
        # Two where each byte is a capital, which some tokenizers write as an operator and a letter.
        require(0 <= self.tokens <= 2 * self.bytes, "more than two tokens a byte")
        require(1 <= self.streams <= MAX_STREAMS, f"streams must lie in 1..{MAX_STREAMS}")
        require(1 <= self.threads <= MAX_THREADS, f"threads must lie in 1..{MAX_THREADS}")
        require(self.dtype in ("float32", "bfloat16"), "dtype must be float32 or bfloat16")
        require(0 <= self.rate <= 1, "rate must lie in 0..1")
        require(not self.rate or self.dtype == "float32", "a model learns in float32 alone")
        require(0 <= self.steps <= MAX_STEPS, f"steps must lie in 0..{MAX_STEPS}")


# What a header may leave out: a file that learns nothing says nothing of learning.
DEFAULTS = {field.name: field.default for field in fields(FileHeader) if field.default is not MISSING}


def pack(header: FileHeader, payload: bytes) -> bytes:
    """A whole .pgc file."""
    values = {name: value for name, value in asdict(header).items() if value != DEFAULTS.get(name)}
    text = json.dumps(values, separators=(",", ":")).encode()
    small = compress(text, "zlib", 9)
    body = PREFIX.pack(MAGIC, VERSION, len(small), len(text)) + small + payload
    return body + CHECKSUM.pack(zlib.crc32(body))


def unpack(data: bytes) -> tuple[FileHeader, bytes]:
    """Header and payload of a .pgc file; UserError at the first thing that is wrong with it."""
    require(data[: len(MAGIC)] == MAGIC, "not a file of `pargolf compress`")
    require(len(data) >= PREFIX.size + CHECKSUM.size, "cut off")
    _, version, size, raw_size = PREFIX.unpack_from(data)
    require(version == VERSION, f"version {version}; this pargolf reads version {VERSION}")
    body, end = data[: -CHECKSUM.size], PREFIX.size + size
    require(
        CHECKSUM.unpack(data[-CHECKSUM.size :]) == (zlib.crc32(body),), "damaged or cut off; copy it again"
    )
    require(end <= len(body) and raw_size <= MAX_RAW_HEADER, "its header is too large")
    try:
        header = _parse(json.loads(decompress(body[PREFIX.size : end], "zlib", raw_size)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"malformed header: {error}") from None
    return header, body[end:]


def _parse(values: Any) -> FileHeader:
    names = {field.name: field.type for field in fields(FileHeader)}
    needed = names.keys() - DEFAULTS
    require(
        isinstance(values, dict) and needed <= values.keys() <= names.keys(),
        f"header must have {', '.join(name for name in names if name in needed)}",
    )
    for name, value in values.items():
        require(type(value) is names[name], f"{name} of its header is of the wrong type")
    return FileHeader(**values)
