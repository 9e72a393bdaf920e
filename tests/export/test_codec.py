import lzma
import subprocess
import sys
import zlib
from pathlib import Path

import brotli
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pargolf.export.codec import CODECS, compress, decompress
from pargolf.system.errors import UserError

codecs = st.sampled_from(sorted(CODECS))


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=2000), codec=codecs, level=st.integers(1, 9))
def test_round_trip(data: bytes, codec: str, level: int) -> None:
    small = compress(data, codec, level)
    assert small == compress(data, codec, level)
    assert decompress(small, codec, len(data)) == data


def test_other_decoders_read_it() -> None:
    data = b"some bytes " * 100
    assert zstandard.decompress(compress(data, "zstd", 22)) == data
    assert zlib.decompress(compress(data, "zlib", 9)) == data
    assert brotli.decompress(compress(data, "brotli", 11)) == data
    lzma2 = [{"id": lzma.FILTER_LZMA2, "dict_size": 4096}]
    assert lzma.decompress(compress(data, "lzma", 9), lzma.FORMAT_RAW, filters=lzma2) == data


BOMBS = """
import resource, sys
from pathlib import Path
from pargolf.system.errors import UserError
from pargolf.export.codec import decompress
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in map(Path, sys.argv[1:]):
    before = peak()
    try: decompress(path.read_bytes(), path.name, 1000)
    except UserError: print(path.name, peak() - before)
"""


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    for codec in CODECS:
        (tmp_path / codec).write_bytes(compress(bytes(30_000_000), codec, 9))
    command = [sys.executable, "-c", BOMBS, *(str(tmp_path / codec) for codec in CODECS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken = {codec: int(kib) for codec, kib in map(str.split, done.stdout.splitlines())}
    assert taken.keys() == CODECS.keys() and max(taken.values()) < 8000


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("wrong", [0, 1, 999, 1001, 10**15])
def test_wrong_sizes_are_refused(codec: str, wrong: int) -> None:
    with pytest.raises(UserError, match=codec):
        decompress(compress(bytes(1000), codec, 9), codec, wrong)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_cut_off_extended_or_foreign_data_are_refused(codec: str) -> None:
    data = np.random.default_rng(0).bytes(300)
    small = compress(data, codec, 9)
    for bad in (*(small[:n] for n in range(len(small))), small + b"\0", small + small, b"", data):
        with pytest.raises(UserError):
            decompress(bad, codec, 300)


def test_a_frame_without_its_size_is_refused() -> None:
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
    with pytest.raises(UserError):
        decompress(unsized, "zstd", 1000)


def test_unknown_codec_is_refused() -> None:
    with pytest.raises(UserError, match="unknown codec 'gzip'"):
        compress(b"", "gzip", 1)
    with pytest.raises(UserError, match="unknown codec 'gzip'"):
        decompress(b"", "gzip", 0)
