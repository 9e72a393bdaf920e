"""General-purpose compressors on the validation text: a scale for the score of a model."""

import lzma
import time
from collections.abc import Callable
from dataclasses import dataclass

import zstandard

from pargolf.errors import UserError


@dataclass(frozen=True)
class CompressorResult:
    """One compressor's figures on the validation text."""

    name: str
    bytes: int
    bpb: float
    """Compressed bits per byte of validation text."""
    seconds: float


def compressor_table(val: bytes, train: bytes) -> list[CompressorResult]:
    """xz -9e and zstd -22 on `val`, each alone and knowing `train` (left out if `train` is empty).

    For xz the second figure is the growth of the compressed file when `val` is put after
    `train`; zstd takes `train` as its dictionary. Raises UserError if `val` is empty.
    """
    if not val:
        raise UserError("the validation text is empty; there is nothing to compress")
    table = [_timed("xz -9e", val, lambda: _xz(val)), _timed("zstd -22", val, lambda: _zstd(val, b""))]
    if train:
        table.insert(1, _timed("xz -9e after the training text", val, lambda: _xz(train + val) - _xz(train)))
        table.append(_timed("zstd -22 after the training text", val, lambda: _zstd(val, train)))
    return table


def _timed(name: str, val: bytes, size: Callable[[], int]) -> CompressorResult:
    start = time.perf_counter()
    compressed = size()
    return CompressorResult(name, compressed, 8 * compressed / len(val), time.perf_counter() - start)


def _xz(text: bytes) -> int:
    # Preset 9 looks back 64 MiB; a larger text must stay in view as a whole. 1.5 GiB is liblzma's most.
    dictionary = min(max(len(text), 64 << 20), 1536 << 20)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]
    return len(lzma.compress(text, filters=filters))


def _zstd(text: bytes, before: bytes) -> int:
    window = max(10, min((len(before) + len(text)).bit_length(), zstandard.WINDOWLOG_MAX))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        22, source_size=len(text), dict_size=len(before), window_log=window, enable_ldm=bool(before)
    )
    dictionary = None
    if before:
        dictionary = zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return len(zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary).compress(text))
