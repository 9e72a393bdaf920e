import dataclasses
import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pargolf.compress.container import MAX_STREAMS, MAX_THREADS, FileHeader, pack, unpack
from pargolf.system.errors import UserError

HEADER = FileHeader("a" * 64, "b" * 64, 1000, 300, 4, 128, "float32", 2, "torch 2, x86_64")
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
headers = st.builds(
    FileHeader, digests, digests, st.integers(300, 2**70), st.integers(0, 300), st.integers(1, MAX_STREAMS),
    st.integers(1, 1024), st.sampled_from(["float32", "bfloat16"]), st.integers(1, MAX_THREADS),
    st.text(max_size=40),
)  # fmt: skip
LEARNS = dataclasses.replace(HEADER, rate=0.001, steps=2, probe="c" * 16)


def sealed(values: Any, payload: bytes = b"", raw_size: int = 0) -> bytes:
    """A file whose header says whatever a stranger likes, by the documented layout, with a right checksum."""
    text = json.dumps(values).encode()
    small = zlib.compress(text)
    body = struct.pack("<4sHHH", b"pgc\0", 1, len(small), raw_size or len(text)) + small + payload
    return body + struct.pack("<I", zlib.crc32(body))


@given(headers, st.binary(max_size=50))
def test_header_and_payload_come_back(header: FileHeader, payload: bytes) -> None:
    assert unpack(pack(header, payload)) == (header, payload)


def test_the_layout_is_the_documented_one() -> None:
    assert unpack(sealed(dataclasses.asdict(HEADER), b"coded")) == (HEADER, b"coded")
    assert len(pack(HEADER, b"")) < 250


def test_a_file_that_learns_says_so_and_another_says_nothing_of_it() -> None:
    assert unpack(pack(LEARNS, b"coded")) == (LEARNS, b"coded")
    plain = {name: value for name, value in dataclasses.asdict(HEADER).items() if getattr(HEADER, name)}
    assert not plain.keys() & {"rate", "steps", "probe"}
    assert unpack(sealed(plain, b"coded")) == (HEADER, b"coded")  # as it was before files learnt
    assert len(pack(HEADER, b"")) <= len(sealed(plain))


def test_every_flipped_byte_and_every_cut_is_noticed() -> None:
    data = pack(HEADER, b"payload")
    for at in range(len(data)):
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]):
            with pytest.raises(UserError):
                unpack(damaged)
    with pytest.raises(UserError, match="damaged or cut off"):
        unpack(data + b"x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "A" * 64}, "hex digits"),
        ({"sha256": "b" * 63}, "hex digits"),
        ({"tokens": -1}, "more than two tokens a byte"),
        ({"tokens": 2001}, "more than two tokens a byte"),
        ({"tokens": 3.0}, "wrong type"),
        ({"tokens": True}, "wrong type"),
        ({"machine": None}, "wrong type"),
        ({"streams": 0}, "streams must lie"),
        ({"streams": 1025}, "streams must lie"),
        ({"threads": 10**9}, "threads must lie"),
        ({"dtype": "float64"}, "dtype must be"),
        ({"rate": -0.1}, "rate must lie"),
        ({"rate": float("nan")}, "rate must lie"),
        ({"rate": 1}, "wrong type"),
        ({"steps": 10**9}, "steps must lie"),
        ({"rate": 0.1, "dtype": "bfloat16"}, "learns in float32"),
        ({"probe": None}, "wrong type"),
        ({"extra": 1}, "header must have"),
        ({"machine": "x" * 5000}, "too large"),
    ],
)
def test_a_header_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        unpack(sealed(dataclasses.asdict(HEADER) | changes))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a file of"),
        (b"%PDF-1.7", "not a file of"),
        (b"pgc\0", "cut off"),
        (b"pgc\0\x02\0" + bytes(20), "version 2"),
        (sealed([1]), "header must have"),
        (sealed({"a": 1}, raw_size=7), "holds 8 bytes, not 7"),
        (sealed("x" * 3000, raw_size=100), "corrupt zlib"),
    ],
)
def test_other_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        unpack(data)
