import bz2
import lzma
import random

import brotli
import pytest
import zstandard

from pargolf.score.compressors import COMPRESSORS, compressor_table
from pargolf.system.errors import UserError


def prose(seed: int, words: int) -> bytes:
    rng = random.Random(seed)
    lexicon = ["".join(random.Random(i).choices("abcdefghij", k=7)) for i in range(400)]
    return " ".join(rng.choices(lexicon, k=words)).encode()


def test_sizes_and_gain_of_a_prefix() -> None:
    val, train = prose(1, 2000), prose(2, 20_000)
    table = {row.name: row for row in compressor_table(val, train)}
    assert list(table) == [
        "xz -9e", "xz -9e after the training text", "zstd -22", "zstd -22 after the training text"
    ]  # fmt: skip
    for row in table.values():
        assert row.bpb == pytest.approx(8 * row.bytes / len(val)) and row.seconds > 0
    assert table["xz -9e"].bytes == len(lzma.compress(val, preset=9 | lzma.PRESET_EXTREME))
    assert table["zstd -22"].bytes <= len(zstandard.compress(val, 19))
    for name in ("xz -9e", "zstd -22"):
        assert table[f"{name} after the training text"].bytes < 0.95 * table[name].bytes


def test_a_prefix_that_holds_the_text_leaves_almost_nothing() -> None:
    val = prose(1, 30_000)
    # The copy is at the far start of the prefix, and longer than a small window: one would show.
    for row in compressor_table(val, val + prose(3, 60_000), list(COMPRESSORS)):
        if "after" in row.name and "PPMd" not in row.name:  # a model of contexts, it does not copy
            assert row.bytes < 200, row


def test_every_compressor_and_what_the_training_text_gains_it() -> None:
    val, train = prose(1, 2000), prose(2, 20_000)
    table = {row.name: row.bytes for row in compressor_table(val, train, list(COMPRESSORS))}
    assert table["bzip2 -9"] == len(bz2.compress(val, 9))
    assert table["brotli -q 11"] == len(brotli.compress(val))
    for name in COMPRESSORS:
        if name != "bzip2 -9":  # alone; its blocks end where the training text does
            assert table.pop(f"{name} after the training text") < 0.95 * table[name]
    assert list(table) == list(COMPRESSORS)


def test_without_training_text_and_without_text() -> None:
    assert [row.name for row in compressor_table(b"abc", b"")] == ["xz -9e", "zstd -22"]
    with pytest.raises(UserError, match="empty"):
        compressor_table(b"", b"abc")
