"""General-purpose compressors on the validation text: a scale for the score of a model."""

import bz2
import lzma
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import brotli
import zstandard

from pargolf.system.errors import UserError


@dataclass(frozen=True)
class CompressorResult:
    """One compressor's figures on the validation text."""

    name: str
    bytes: int
    bpb: float
    """Compressed bits per byte of validation text."""
    seconds: float


def compressor_table(
    val: bytes, train: bytes, names: Sequence[str] = ("xz -9e", "zstd -22")
) -> list[CompressorResult]:
    """The compressors `names`, of COMPRESSORS, on `val`: each alone and, if it can, knowing `train`.

    The second figure is left out if `train` is empty. Raises UserError if `val` is empty.
    """
    if not val:
        raise UserError("the validation text is empty; there is nothing to compress")
    table = []
    for name in names:
        size = COMPRESSORS[name]
        table.append(_timed(name, val, partial(size, val, b"")))
        if train and name not in FORGETFUL:
            table.append(_timed(f"{name} after the training text", val, partial(size, val, train)))
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


def _ppmd(text: bytes) -> int:
    try:
        import pyppmd
    except ImportError:
        raise UserError("PPMd needs pyppmd; install it with: pip install 'pargolf[dev]'") from None
    return len(pyppmd.compress(text, max_order=8, mem_size=256 << 20, variant="I"))


def _growth(size: Callable[[bytes], int]) -> Callable[[bytes, bytes], int]:
    """How much a compressed file grows when a text is put after what comes before it."""
    return lambda text, before: size(before + text) - (size(before) if before else 0)


# Compressed size of a text after another one that the decoder knows as well.
COMPRESSORS: dict[str, Callable[[bytes, bytes], int]] = {
    "xz -9e": _growth(_xz),
    "zstd -22": _zstd,
    "brotli -q 11": _growth(lambda text: len(brotli.compress(text, quality=11, lgwin=24))),
    "bzip2 -9": _growth(lambda text: len(bz2.compress(text, 9))),
    "PPMd, order 8": _growth(_ppmd),
}
FORGETFUL = {"bzip2 -9"}  # it looks back 900 kB at most
