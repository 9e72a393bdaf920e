from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pargolf.data.shards import TokenStream, open_shard, open_split, read_header, write_shard
from pargolf.system.errors import UserError


def test_format_is_the_challenges(tmp_path: Path) -> None:
    path = tmp_path / "fineweb_val_000000.bin"
    write_shard(path, np.array([1, 258, 65_535]))
    raw = path.read_bytes()
    header = np.frombuffer(raw[:1024], "<i4")
    assert header[:3].tolist() == [20240520, 1, 3] and not header[3:].any()
    assert raw[1024:] == b"\x01\x00\x02\x01\xff\xff"
    assert read_header(path) == 3
    assert open_shard(path).tolist() == [1, 258, 65_535]
    with pytest.raises(ValueError, match="16 bits"):
        write_shard(path, np.array([65_536]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-3], "3 bytes are missing; download or make it again"),
        (lambda raw: raw + b"x", "1 bytes more"),
        (lambda raw: raw[:100], "truncated within its 1024-byte header"),
        (lambda raw: b"\0" + raw[1:], "magic"),
        (lambda raw: raw[:4] + b"\2" + raw[5:], "version 2"),
        (lambda raw: raw[:8] + b"\0\0\0\0" + raw[12:1024], "holds 0 tokens"),
    ],
)
def test_damaged_shards_are_user_errors(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "fineweb_val_000000.bin"
    write_shard(path, np.arange(10))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        open_shard(path)


def test_missing_shards(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read shard"):
        read_header(tmp_path / "nowhere.bin")
    with pytest.raises(UserError, match="pargolf data"):
        open_split(tmp_path, "train")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    folder = tmp_path_factory.mktemp("shards")
    for index, (start, end) in enumerate([(0, 5), (5, 6), (6, 17)]):
        write_shard(folder / f"fineweb_train_{index:06d}.bin", np.arange(start, end))
    write_shard(folder / "fineweb_val_000000.bin", np.arange(99))
    return open_split(folder, "train")


@given(offset=st.integers(0, 10**12), count=st.integers(0, 60))
def test_the_stream_is_cyclic(stream: TokenStream, offset: int, count: int) -> None:
    assert len(stream) == 17
    tokens = stream.read(offset, count)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == [(offset + i) % 17 for i in range(count)]
