"""Bytes to fewer bytes and back.

Everything that decodes trusts nothing: the sizes are known beforehand, no more is ever
allocated, and whatever does not fit is a UserError.
"""

import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brotli
import zstandard

from pargolf.system.errors import UserError


@dataclass(frozen=True)
class Codec:
    """compress(data, level); decompress(data, raw_size) may return any bytes, or raise ValueError."""

    compress: Callable[[bytes, int], bytes]
    decompress: Callable[[bytes, int], bytes]


def _zstd_compress(data: bytes, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(data)


def _zstd_decompress(data: bytes, raw_size: int) -> bytes:
    try:
        # The decoder allocates what the frame itself claims, so the claim is checked first.
        claimed = zstandard.get_frame_parameters(data).content_size
        if claimed != raw_size:
            raise ValueError(f"it claims to hold {claimed} bytes, not {raw_size}")
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(error) from None


def _zlib_decompress(data: bytes, raw_size: int) -> bytes:
    # One byte more than expected lets the stream reach its end, or betray that it is too long.
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data, raw_size + 1)
    except zlib.error as error:
        raise ValueError(error) from None
    if not stream.eof or stream.unused_data:
        raise ValueError("the stream is cut off, too long or followed by other bytes")
    return raw


def _brotli_compress(data: bytes, level: int) -> bytes:
    return brotli.compress(data, quality=level, lgwin=24)


def _brotli_decompress(data: bytes, raw_size: int) -> bytes:
    stream = brotli.Decompressor()
    try:
        raw: bytes = stream.process(data, output_buffer_limit=raw_size + 1)
    except brotli.error as error:
        raise ValueError(error) from None
    if not stream.is_finished():
        raise ValueError("the stream is cut off or too long")
    return raw


def _lzma_filters(raw_size: int, **more: int) -> list[dict[str, Any]]:
    # The decoder allocates its dictionary at once: no more than the data can use.
    window = min(max(raw_size, 4096), 1 << 26)
    return [{"id": lzma.FILTER_LZMA2, "dict_size": window, **more}]


def _lzma_compress(data: bytes, level: int) -> bytes:
    # Literals by their place modulo 2 and not by the byte before: most of ours are float16.
    filters = _lzma_filters(len(data), preset=level | lzma.PRESET_EXTREME, lc=0, lp=1, pb=1)
    return lzma.compress(data, lzma.FORMAT_RAW, filters=filters)


def _lzma_decompress(data: bytes, raw_size: int) -> bytes:
    stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_lzma_filters(raw_size))
    try:
        raw = stream.decompress(data, raw_size + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(error) from None
    if not stream.eof or stream.unused_data:
        raise ValueError("the stream is cut off, too long or followed by other bytes")
    return raw


CODECS = {
    "zstd": Codec(_zstd_compress, _zstd_decompress),
    "zlib": Codec(zlib.compress, _zlib_decompress),
    "brotli": Codec(_brotli_compress, _brotli_decompress),
    "lzma": Codec(_lzma_compress, _lzma_decompress),
}


def _codec(name: str) -> Codec:
    if name not in CODECS:
        raise UserError(f"unknown codec {name[:40]!r}; known: {', '.join(CODECS)}")
    return CODECS[name]


def compress(data: bytes, codec: str, level: int) -> bytes:
    """`data` compressed by a codec of CODECS; the same input gives the same bytes. UserError if unknown."""
    return _codec(codec).compress(data, level)


def decompress(data: bytes, codec: str, raw_size: int) -> bytes:
    """The `raw_size` bytes that `data` holds, allocating no more than those.

    Raises UserError if the data are corrupt, hold more or fewer bytes, or the codec is unknown.
    """
    try:
        raw = _codec(codec).decompress(data, raw_size)
        if len(raw) != raw_size:
            raise ValueError(f"it holds {len(raw)} bytes, not {raw_size}")
    except ValueError as error:
        raise UserError(f"corrupt {codec} data: {error}") from None
    return raw
