import hashlib
import json
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pargolf.config import ExportConfig, ModelConfig
from pargolf.errors import UserError
from pargolf.export import artifact
from pargolf.export.artifact import assemble, check_state, pack, read_artifact, read_header, unpack
from pargolf.export.quantize import dequantize_state, quantize_state
from pargolf.tensors import Slot

TINY = ModelConfig(
    vocab_size=4, seq_len=4, n_layers=2, d_model=2, n_heads=1, kv_heads=1, q_rank=0, mlp_ratio=1
)
SHA = "0123456789abcdef" * 4
SLOTS = {
    "embed.weight": Slot("embed", None),
    "blocks.0.q": Slot("attn", 0),
    "blocks.1.q": Slot("attn", 1),
    "blocks.1.q.scale": Slot("attn", 1),  # a name that could collide with that of a scale
    "blocks.0.fc": Slot("mlp", 0),
    "blocks.1.fc": Slot("mlp", 1),
    "blocks.0.mix": Slot("vector", 0),
    "skips": Slot("vector", None),
}
LEVEL_3 = ExportConfig(level=3)
MAKE_BYTES = """
import sys, hashlib, torch
sys.path.insert(0, sys.argv[1])
import test_artifact as t
print(hashlib.sha256(t.pack(t.random_state(5), t.SLOTS, t.TINY, t.LEVEL_3, t.SHA)).hexdigest())
"""


def random_state(seed: int, cols: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(4, cols, generator=g) for name in SLOTS}
    state["blocks.0.mix"] = torch.randn(2, 1, 3, generator=g)
    state["skips"] = torch.randn((), generator=g)
    return state


def small_artifact() -> bytes:
    return pack(random_state(0), SLOTS, TINY, LEVEL_3, SHA)


def parts(data: bytes) -> tuple[Any, list[bytes]]:
    """Header and section payloads, read from the documented layout and not by the code under test."""
    _, _, _, size, _ = struct.unpack_from("<8sIQII", data)
    header = json.loads(zlib.decompress(data[28 : 28 + size]))
    payloads, at = [], 28 + size
    for section in header["sections"]:
        payloads.append(data[at : at + section["bytes"]])
        at += section["bytes"]
    assert at == len(data) - 32
    return header, payloads


def sealed(body: bytes) -> bytes:
    """`body` (all but the checksum) with its length mended and a right checksum."""
    body = body[:12] + struct.pack("<Q", len(body) + 32) + body[20:]
    return body + hashlib.sha256(body).digest()


bits = st.sampled_from([4, 5, 6, 7, 8, 16, 32])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    cols=st.integers(1, 9),
    attn=bits,
    mlp=bits,
    embed=bits,
    vector=st.sampled_from([16, 32]),
    layout=st.sampled_from(["bytes", "packed"]),
    codec=st.sampled_from(["zstd", "zlib"]),
)
def test_what_is_read_is_what_was_quantized(
    seed: int, cols: int, attn: Any, mlp: Any, embed: Any, vector: Any, layout: Any, codec: Any
) -> None:
    export = ExportConfig(attn, mlp, embed, vector, layout=layout, codec=codec, level=3, budget=seed + 1)
    state = random_state(seed, cols)
    model = replace(TINY, vocab_size=1)
    a = unpack(pack(state, SLOTS, model, export, SHA))
    assert (a.model, a.export, a.tokenizer_sha256) == (model, export, SHA)
    expected = dequantize_state(quantize_state(state, SLOTS, export))
    assert a.state.keys() == expected.keys()
    for name, x in a.state.items():
        assert x.dtype == torch.float32 and torch.equal(x, expected[name]), name
    check_state(a.state, {name: tuple(x.shape) for name, x in state.items()})


@pytest.mark.parametrize("codec", ["zstd", "zlib"])
def test_sections_are_what_the_format_says(codec: Any) -> None:
    """Decoded with other libraries, by the format's description alone."""
    state = random_state(1)
    export = ExportConfig(codec=codec, level=3)
    data = pack(state, SLOTS, TINY, export, SHA)
    assert data[:8] == b"pargolf\0" and data[-32:] == hashlib.sha256(data[:-32]).digest()
    header, payloads = parts(data)
    places = [(s["kind"], s["layer"]) for s in header["sections"]]
    assert places == [("embed", None), ("attn", 0), ("attn", 1), ("mlp", 0), ("mlp", 1), ("vector", None)]
    stored: dict[str, Tensor] = {}
    for section, payload in zip(header["sections"], payloads, strict=True):
        raw = zstandard.decompress(payload) if codec == "zstd" else zlib.decompress(payload)
        assert len(raw) == section["raw_bytes"]
        stored |= safetensors.torch.load(raw)
    q = stored["int/blocks.1.q"]
    assert q.dtype == torch.int8 and q.shape == (4, 3)
    close = q.float() * stored["scale/blocks.1.q"].float()[:, None]
    assert (close - state["blocks.1.q"]).abs().max() < state["blocks.1.q"].abs().max() / 60
    assert torch.equal(stored["float/skips"], state["skips"])
    assert torch.equal(stored["float/embed.weight"], state["embed.weight"].half())
    assert sum(s["values"] for s in header["sections"]) == sum(x.numel() for x in state.values())


def test_same_state_gives_same_bytes_in_any_order_and_process() -> None:
    state = random_state(5)
    data = pack(state, SLOTS, TINY, LEVEL_3, SHA)
    turned = dict(reversed(list(state.items()))), dict(reversed(list(SLOTS.items())))
    assert pack(*turned, TINY, LEVEL_3, SHA) == data
    command = [sys.executable, "-c", MAKE_BYTES, str(Path(__file__).parent)]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(data).hexdigest()


def test_every_truncation_and_extension_is_refused() -> None:
    data = small_artifact()
    for bad in (*(data[:n] for n in range(len(data))), data + b"\0", data + data):
        with pytest.raises(UserError):
            unpack(bad)


def test_every_flipped_byte_is_refused() -> None:
    data = small_artifact()
    for at in range(len(data)):
        bad = bytearray(data)
        bad[at] ^= 1 + at % 255
        with pytest.raises(UserError):
            unpack(bytes(bad))


def test_flips_below_a_right_checksum_never_crash() -> None:
    """A flip may hit a weight and go unnoticed; nothing but a UserError may come of the others."""
    data = small_artifact()
    rng = np.random.default_rng(0)
    refused = 0
    for at in [*range(len(data) - 32), *rng.integers(0, len(data) - 32, 300)]:
        bad = bytearray(data[:-32])
        bad[at] ^= int(rng.integers(1, 256))
        try:
            unpack(sealed(bytes(bad)))
        except UserError:
            refused += 1
    assert refused > 500


def test_flips_below_the_compression_never_crash() -> None:
    header, payloads = parts(small_artifact())
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(1500):
        k = int(rng.integers(len(payloads)))
        raw = bytearray(zstandard.decompress(payloads[k]))
        raw[int(rng.integers(len(raw)))] ^= int(rng.integers(1, 256))
        refused += refuses(*with_section(header, payloads, k, bytes(raw)))
    assert refused > 500


def refuses(header: Any, payloads: list[bytes]) -> bool:
    try:
        unpack(assemble(header, payloads))
    except UserError:
        return True
    return False


def with_section(header: Any, payloads: list[bytes], k: int, raw: bytes) -> tuple[Any, list[bytes]]:
    """The same file with section k holding other raw bytes, all sizes right."""
    header, payloads = json.loads(json.dumps(header)), list(payloads)
    payloads[k] = zstandard.compress(raw)
    header["sections"][k] |= {"bytes": len(payloads[k]), "raw_bytes": len(raw)}
    return header, payloads


def shift(header: Any) -> None:
    header["sections"][0]["bytes"] += 1
    header["sections"][1]["bytes"] -= 1


def setting(section: str, name: str, value: Any) -> Callable[[Any], None]:
    return lambda header: header[section].__setitem__(name, value)


def in_section(name: str, value: Any, k: int = 2) -> Callable[[Any], None]:
    return lambda header: header["sections"][k].__setitem__(name, value)


CRAFTED: dict[str, Callable[[Any], Any]] = {
    "raw bytes too many": in_section("raw_bytes", 10**9),
    "raw bytes beyond 64 bits": in_section("raw_bytes", 10**30),
    "raw bytes one off": lambda h: in_section("raw_bytes", h["sections"][2]["raw_bytes"] + 1)(h),
    "raw bytes negative": in_section("raw_bytes", -1),
    "raw bytes a float": in_section("raw_bytes", 100.0),
    "raw bytes true": in_section("raw_bytes", True),
    "bytes zero": in_section("bytes", 0),
    "bytes negative": in_section("bytes", -5),
    "bytes a string": in_section("bytes", "100"),
    "bytes too many": in_section("bytes", 10**12),
    "sections overlap": shift,
    "values wrong": in_section("values", 1),
    "values too many": in_section("values", 10**18),
    "kind unknown": in_section("kind", "gain"),
    "kind another": in_section("kind", "embed"),
    "kind a list": in_section("kind", ["attn"]),
    "codec unknown": in_section("codec", "lzma"),
    "codec another": in_section("codec", "zlib"),
    "codec null": in_section("codec", None),
    "layer outside": in_section("layer", 2),
    "layer negative": in_section("layer", -1),
    "layer true": in_section("layer", True),
    "layer a string": in_section("layer", "0"),
    "section twice": in_section("layer", 0),
    "section key missing": lambda h: h["sections"][0].pop("values"),
    "section key unknown": in_section("name", "x"),
    "section a list": lambda h: h["sections"].__setitem__(0, [1, 2]),
    "section missing": lambda h: h["sections"].pop(),
    "sections empty": lambda h: h["sections"].clear(),
    "sections a dict": lambda h: h.__setitem__("sections", {}),
    "model missing": lambda h: h.pop("model"),
    "model null": lambda h: h.__setitem__("model", None),
    "model field unknown": setting("model", "wings", 2),
    "model field of wrong type": setting("model", "n_layers", "2"),
    "model many layers": setting("model", "n_layers", 10**9),
    "model wide": setting("model", "d_model", 10**6),
    "model wide beyond printing": setting("model", "d_model", 10**4000),
    "model long": setting("model", "seq_len", 10**10),
    "model large MLP": setting("model", "mlp_ratio", 10**9),
    "model softcap infinite": setting("model", "softcap", float("inf")),
    "model gain NaN": setting("model", "q_gain", float("nan")),
    "model gain beyond floats": setting("model", "q_gain", 10**400),
    "export missing": lambda h: h.pop("export"),
    "export bits other": setting("export", "attn_bits", 8.0),
    "export bits fewer": setting("export", "attn_bits", 4),
    "export bits float": setting("export", "attn_bits", 32),
    "export layout other": setting("export", "layout", "packed"),
    "export quantile NaN": setting("export", "clip_quantile", float("nan")),
    "tokenizer short": lambda h: h.__setitem__("tokenizer_sha256", "ab"),
    "tokenizer upper case": lambda h: h.__setitem__("tokenizer_sha256", SHA.upper()),
    "tokenizer with newline": lambda h: h.__setitem__("tokenizer_sha256", SHA[1:] + "\n"),
    "tokenizer a number": lambda h: h.__setitem__("tokenizer_sha256", 5),
    "extra key": lambda h: h.__setitem__("x", 1),
}


@pytest.mark.parametrize("change", CRAFTED.values(), ids=CRAFTED.keys())
def test_crafted_headers_are_refused(change: Callable[[Any], Any]) -> None:
    header, payloads = parts(small_artifact())
    unpack(assemble(header, payloads))
    change(header)
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            unpack(assemble(header, payloads), "file.pgz")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith("file.pgz: ") and "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"null", b"1" * 5000, b"[" * 500_000, b'{"a":' * 100_000, b"\xff\xfe", b"NaN",
        b" " * (artifact.MAX_HEADER_BYTES + 1),
    ],
)  # fmt: skip
def test_hostile_header_texts_are_refused(text: bytes) -> None:
    small = zlib.compress(text)
    body = struct.pack("<8sIQII", b"pargolf\0", 1, 0, len(small), len(text)) + small
    with pytest.raises(UserError):
        unpack(sealed(body))


@pytest.mark.parametrize("size", [0, 5, 10**6, 2**32 - 1])
def test_header_of_wrong_length_is_refused(size: int) -> None:
    data = small_artifact()
    for at in (20, 24):
        with pytest.raises(UserError):
            unpack(sealed(data[:at] + struct.pack("<I", size) + data[at + 4 : -32]))


def test_other_version_is_named() -> None:
    data = small_artifact()
    with pytest.raises(UserError, match="version 7"):
        read_header(data[:8] + struct.pack("<I", 7) + data[12:])


@pytest.mark.parametrize("codec", ["zstd", "zlib"])
def test_bombs_are_refused(codec: str) -> None:
    """Sections that expand to more than they say, or say that they expand to too much."""
    header, payloads = parts(small_artifact())
    zeros = bytes(50_000_000)
    payloads[2] = zstandard.compress(zeros) if codec == "zstd" else zlib.compress(zeros)
    header["sections"][2] |= {"bytes": len(payloads[2]), "codec": codec}
    del zeros
    for claim in (header["sections"][2]["raw_bytes"], artifact.MAX_BYTES + 1):
        header["sections"][2]["raw_bytes"] = claim
        tracemalloc.start()
        try:
            assert refuses(header, payloads)
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()


ints = torch.ones(4, 3, dtype=torch.int8)
scale = torch.ones(4, dtype=torch.float16)
HOSTILE_SECTIONS: dict[str, dict[str, Tensor]] = {
    "no scale": {"int/a": ints},
    "no values": {"scale/a": scale},
    "no part": {"a": ints, "scale/a": scale},
    "extra tensor": {"int/a": ints, "scale/a": scale, "float/b": scale.clone()},
    "too few rows": {"int/a": ints, "scale/a": scale[:3]},
    "scale float32": {"int/a": ints, "scale/a": scale.float()},
    "scale matrix": {"int/a": ints, "scale/a": scale[:, None]},
    "scale NaN": {"int/a": ints, "scale/a": scale * float("nan")},
    "scale infinite": {"int/a": ints, "scale/a": scale * float("inf")},
    "scale zero": {"int/a": ints, "scale/a": scale * 0},
    "scale negative": {"int/a": ints, "scale/a": -scale},
    "values uint8": {"int/a": ints.to(torch.uint8), "scale/a": scale},
    "values vector": {"int/a": ints[:, 0].contiguous(), "scale/a": scale},
    "values beyond 6 bits": {"int/a": ints * 32, "scale/a": scale},
    "values -128": {"int/a": ints * -128, "scale/a": scale},
    "empty": {"int/a": ints[:0], "scale/a": scale[:0]},
    "tensor of another section": {"int/blocks.0.fc": ints, "scale/blocks.0.fc": scale},
}


@pytest.mark.parametrize("tensors", HOSTILE_SECTIONS.values(), ids=HOSTILE_SECTIONS.keys())
def test_hostile_sections_are_refused(tensors: dict[str, Tensor]) -> None:
    header, payloads = parts(small_artifact())
    changed, payloads = with_section(header, payloads, 1, safetensors.torch.save(tensors))
    assert refuses(changed, payloads)
    good, payloads = with_section(
        header, payloads, 1, safetensors.torch.save({"int/a": ints, "scale/a": scale})
    )
    assert not refuses(good, payloads)


@pytest.mark.parametrize("cols", [0, -3, 2, 4, 2**31 - 1])
def test_hostile_column_counts_are_refused(cols: int) -> None:
    data = pack(random_state(0), SLOTS, TINY, replace(LEVEL_3, layout="packed"), SHA)
    header, payloads = parts(data)
    tensors = safetensors.torch.load(zstandard.decompress(payloads[1]))
    assert tensors["cols/blocks.0.q"].tolist() == [3]
    tensors["cols/blocks.0.q"][0] = cols
    assert refuses(*with_section(header, payloads, 1, safetensors.torch.save(tensors)))


def blob(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


@pytest.mark.parametrize(
    "raw",
    [
        b"x", bytes(8), struct.pack("<Q", 2**63) + b"{}", blob(b"{}"), blob(b"{"), blob(b'{"a":' * 10_000),
        blob(b'{"int/a":{"dtype":"I8","shape":[0,4611686018427387904],"data_offsets":[0,0]},'
             b'"scale/a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}'),
        blob(b'{"int/a":{"dtype":"I8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
        blob(b'{"int/a":{"dtype":"I8","shape":[4],"data_offsets":[0,8]}}', bytes(4)),
        blob(b'{"int/a":{"dtype":"F8_E8M0","shape":[4],"data_offsets":[0,4]}}', bytes(4)),
        blob(b'{"int/a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}', bytes(4)),
        blob(b'{"int/a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}', bytes(8)),
    ],
)  # fmt: skip
def test_hostile_blobs_are_refused(raw: bytes) -> None:
    header, payloads = parts(small_artifact())
    for k in (1, 5):
        assert refuses(*with_section(header, payloads, k, raw))


def test_nothing_is_packed_that_could_not_be_read() -> None:
    state = random_state(0)
    with pytest.raises(UserError, match="tokenizer_sha256"):
        pack(state, SLOTS, TINY, LEVEL_3, "none")
    with pytest.raises(UserError, match="at least"):
        pack(state, SLOTS, ModelConfig(), LEVEL_3, SHA)
    with pytest.raises(ValueError, match="differ"):
        pack(state, {}, TINY, LEVEL_3, SHA)
    with pytest.raises(UserError, match=r"blocks\.0\.q"):
        pack(state | {"blocks.0.q": torch.full((4, 3), float("nan"))}, SLOTS, TINY, LEVEL_3, SHA)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pgz"
    with pytest.raises(UserError, match="no artifact"):
        read_artifact(path)
    path.write_bytes(small_artifact())
    assert read_artifact(path).model == TINY
    path.write_bytes(b"pargolf")
    with pytest.raises(UserError, match=r"model\.pgz: not a pargolf artifact"):
        read_artifact(path)
    with path.open("wb") as file:
        file.truncate(artifact.MAX_BYTES + 1)  # sparse
    with pytest.raises(UserError, match="larger than any artifact"):
        read_artifact(path)
    with pytest.raises(UserError):
        read_artifact(tmp_path)


def test_check_state_names_the_difference() -> None:
    state = {"a": torch.ones(2, 3)}
    check_state(state, {"a": (2, 3)})
    with pytest.raises(UserError, match=r"a of the artifact has shape \(2, 3\); its model needs \(3, 2\)"):
        check_state(state, {"a": (3, 2)})
    with pytest.raises(UserError, match="lacks tensor b"):
        check_state(state, {"a": (2, 3), "b": (1,)})
    with pytest.raises(UserError, match="holds tensor 'a'"):
        check_state(state, {})


def test_bytes_compress_smaller_than_packed_bits() -> None:
    """The measurement behind the default layout."""
    g = torch.Generator().manual_seed(0)
    state = {"a": torch.randn(512, 1536, generator=g)}
    sizes = {
        layout: len(pack(state, {"a": Slot("attn", 0)}, TINY, ExportConfig(layout=layout), SHA))
        for layout in ("bytes", "packed")
    }
    assert sizes["bytes"] < 0.94 * sizes["packed"]
