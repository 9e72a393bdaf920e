"""Artifacts from strangers: everything malformed is one UserError, also below a right checksum."""

import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import zstandard
from torch import Tensor

from artifact_support import LEVEL_3, SHA, SLOTS, TINY, parts, random_state, sealed, small_artifact
from pargolf.export import artifact
from pargolf.export.artifact import assemble, pack, read_header, unpack
from pargolf.export.codec import CODECS, compress
from pargolf.export.section import LAYOUTS
from pargolf.system.errors import UserError


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


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_flips_below_the_compression_never_crash(layout: Any) -> None:
    header, payloads = parts(pack(random_state(0), SLOTS, TINY, replace(LEVEL_3, layout=layout), SHA))
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(800):
        k = int(rng.integers(len(payloads)))
        raw = bytearray(split(header, payloads, k)[0])
        raw[int(rng.integers(len(raw)))] ^= int(rng.integers(1, 256))
        refused += refuses(*with_section(header, payloads, k, bytes(raw)))
    assert refused > 200


def refuses(header: Any, payloads: list[bytes]) -> bool:
    try:
        unpack(assemble(header, payloads))
    except UserError:
        return True
    return False


def with_section(header: Any, payloads: list[bytes], k: int, raw: bytes) -> tuple[Any, list[bytes]]:
    """The same file with section k holding other raw bytes, all sizes right."""
    header, payloads = json.loads(json.dumps(header)), list(payloads)
    payloads[k] = zstandard.compress(raw) + split(header, payloads, k)[1]
    header["sections"][k] |= {"bytes": len(payloads[k]), "raw_bytes": len(raw)}
    return header, payloads


def split(header: Any, payloads: list[bytes], k: int) -> tuple[bytes, bytes]:
    """The raw bytes of section k, and its range-coded values."""
    middle = len(payloads[k]) - header["sections"][k]["code_bytes"]
    return zstandard.decompress(payloads[k][:middle]), payloads[k][middle:]


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
    "code bytes negative": in_section("code_bytes", -1),
    "code bytes all": lambda h: in_section("code_bytes", h["sections"][2]["bytes"])(h),
    "code bytes some": in_section("code_bytes", 4),
    "code bytes a float": in_section("code_bytes", 0.0),
    "values wrong": in_section("values", 1),
    "values too many": in_section("values", 10**18),
    "kind unknown": in_section("kind", "gain"),
    "kind a list": in_section("kind", ["attn"]),
    "codec unknown": in_section("codec", "gzip"),
    "codec auto": in_section("codec", "auto"),
    "codec lzma": in_section("codec", "lzma"),
    "codec brotli": in_section("codec", "brotli"),
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
    "model wide where it is full": lambda header: header["model"].update(
        vocab_size=1, seq_len=1, d_model=8, q_rank=0, fc_rank=1, proj_rank=1, k_rank=1, v_rank=1, out_rank=1
    ),
    "model wide beyond printing": setting("model", "d_model", 10**4000),
    "model long": setting("model", "seq_len", 10**10),
    "model large MLP": setting("model", "mlp_ratio", 10**9),
    "model softcap infinite": setting("model", "softcap", float("inf")),
    "model gain NaN": setting("model", "q_gain", float("nan")),
    "model gain beyond floats": setting("model", "q_gain", 10**400),
    "export missing": lambda h: h.pop("export"),
    "export bits other": setting("export", "attn_bits", 8.0),
    "export layout other": setting("export", "layout", "packed"),
    "export layout planes": setting("export", "layout", "planes"),
    "export layout range": setting("export", "layout", "range"),
    "export layout auto": setting("export", "layout", "auto"),
    "export codec auto": setting("export", "codec", "auto"),
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
    body = struct.pack("<8sIQII", b"pargolf\0", artifact.VERSION, 0, len(small), len(text)) + small
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


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_bombs_are_refused(codec: str) -> None:
    """Sections that expand to more than they say, or say that they expand to too much."""
    header, payloads = parts(small_artifact())
    zeros = bytes(50_000_000)
    payloads[2] = compress(zeros, codec, 3)
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
signs = torch.full((4, 1), 0b10100000, dtype=torch.uint8)  # + - +, and five bits of nothing
corrected = {
    "int6/a": ints,
    "scale/a": scale,
    "lqer_left/a": torch.ones(4, 2, dtype=torch.int8),
    "lqer_left_scale/a": torch.ones(1).half(),
    "lqer_right/a": torch.ones(2, 3, dtype=torch.int8),
    "lqer_right_scale/a": torch.ones(1).half(),
}
HOSTILE_SECTIONS: dict[str, dict[str, Tensor | None]] = {
    "no scale": {"int6/a": ints},
    "no values": {"scale/a": scale},
    "no part": {"a": ints, "scale/a": scale},
    "extra tensor": {"int6/a": ints, "scale/a": scale, "float/b": scale.clone()},
    "too few rows": {"int6/a": ints, "scale/a": scale[:3]},
    "scale float32": {"int6/a": ints, "scale/a": scale.float()},
    "scale matrix": {"int6/a": ints, "scale/a": scale[:, None]},
    "scale NaN": {"int6/a": ints, "scale/a": scale * float("nan")},
    "scale infinite": {"int6/a": ints, "scale/a": scale * float("inf")},
    "scale zero": {"int6/a": ints, "scale/a": scale * 0},
    "scale negative": {"int6/a": ints, "scale/a": -scale},
    "values uint8": {"int6/a": ints.to(torch.uint8), "scale/a": scale},
    "values vector": {"int6/a": ints[:, 0].contiguous(), "scale/a": scale},
    "values beyond 6 bits": {"int6/a": ints * 32, "scale/a": scale},
    "values beyond their bits": {"int2/a": ints * 2, "scale/a": scale},
    "bits 9": {"int9/a": ints, "scale/a": scale},
    "signs unpacked": {"int1/a": ints, "scale/a": scale, "cols/a": torch.tensor([3], dtype=torch.int32)},
    "signs of no columns": {
        "int1/a": signs,
        "scale/a": scale,
        "cols/a": torch.tensor([0], dtype=torch.int32),
    },
    "signs of more columns": {
        "int1/a": signs,
        "scale/a": scale,
        "cols/a": torch.tensor([9], dtype=torch.int32),
    },
    "signs of fewer columns": {
        "int1/a": signs,
        "scale/a": scale,
        "cols/a": torch.tensor([2], dtype=torch.int32),
    },
    "signs that say nothing": {"int1/a": signs, "scale/a": scale},
    "bits two ways": {"int6/a": ints, "int5/a": ints.clone(), "scale/a": scale},
    "floats and values": {"int6/a": ints, "scale/a": scale, "float/a": ints.half()},
    "float64": {"float/a": ints.double()},
    "values -128": {"int6/a": ints * -128, "scale/a": scale},
    "empty": {"int6/a": ints[:0], "scale/a": scale[:0]},
    "a correction without scales": {**corrected, "lqer_left_scale/a": None},
    "a correction of one matrix": {**corrected, "lqer_right/a": None},
    "a correction of floats": {**corrected, "lqer_left/a": torch.ones(4, 2)},
    "a correction of other rows": {**corrected, "lqer_left/a": torch.ones(5, 2, dtype=torch.int8)},
    "a correction of other columns": {**corrected, "lqer_right/a": torch.ones(2, 4, dtype=torch.int8)},
    "a correction of two ranks": {**corrected, "lqer_right/a": torch.ones(1, 3, dtype=torch.int8)},
    "a correction of no rank": {
        **corrected,
        "lqer_left/a": torch.ones(4, 0, dtype=torch.int8),
        "lqer_right/a": torch.ones(0, 3, dtype=torch.int8),
    },
    "a correction above full rank": {
        **corrected,
        "lqer_left/a": torch.ones(4, 4, dtype=torch.int8),
        "lqer_right/a": torch.ones(4, 3, dtype=torch.int8),
    },
    "a correction of two left scales": {**corrected, "lqer_left_scale/a": torch.ones(2).half()},
    "a correction of two right scales": {**corrected, "lqer_right_scale/a": torch.ones(2).half()},
    "a correction by NaN": {**corrected, "lqer_left_scale/a": torch.full((1,), float("nan")).half()},
    "a correction of floats alone": {
        **{name: x for name, x in corrected.items() if name.startswith("lqer")},
        "float/a": torch.ones(4, 3),
    },
    "tensor of another section": {"int6/blocks.0.fc": ints, "scale/blocks.0.fc": scale},
}


@pytest.mark.parametrize("tensors", HOSTILE_SECTIONS.values(), ids=HOSTILE_SECTIONS.keys())
def test_hostile_sections_are_refused(tensors: dict[str, Tensor | None]) -> None:
    header, payloads = parts(small_artifact())
    header["export"] |= {"lqer_rank": 2, "attn_bits": 1}  # which have parts of their own
    there = {name: x for name, x in tensors.items() if x is not None}
    changed, payloads = with_section(header, payloads, 1, safetensors.torch.save(there))
    assert refuses(changed, payloads)
    three = torch.tensor([3], dtype=torch.int32)
    for good in (
        {"int6/a": ints, "scale/a": scale},
        corrected,
        {"int1/a": signs, "scale/a": scale, "cols/a": three},
    ):
        whole, payloads = with_section(header, payloads, 1, safetensors.torch.save(good))
        assert not refuses(whole, payloads)


def forged(layout: Any, tensors: dict[str, Tensor]) -> Any:
    header, payloads = parts(pack(random_state(0), SLOTS, TINY, replace(LEVEL_3, layout=layout), SHA))
    return with_section(header, payloads, 1, safetensors.torch.save(tensors))


def test_more_values_than_a_section_has_are_not_unfolded() -> None:
    """A few kilobytes of zeros, compressed, once took gigabytes before they were counted."""
    size = 2_000_000
    zeros, one = torch.zeros(size, dtype=torch.uint8), torch.ones(1, dtype=torch.float16)
    plain = {"int2/a": zeros.to(torch.int8)[None], "scale/a": one}
    changed = [forged("bytes", plain), forged("bytes", {"float/a": zeros.half()})]
    for file, message in zip(changed, ("wrong size", "more values"), strict=True):
        data = assemble(*file)
        tracemalloc.start()
        try:
            with pytest.raises(UserError, match=message):
                unpack(data)
            assert tracemalloc.get_traced_memory()[1] < 6 * size
        finally:
            tracemalloc.stop()


PLANES = pack(random_state(0), SLOTS, TINY, replace(LEVEL_3, layout="planes"), SHA)
RANGE = pack(random_state(0), SLOTS, TINY, replace(LEVEL_3, layout="range"), SHA)
byte = torch.ones(4, dtype=torch.uint8)
HOSTILE_PARTS: dict[str, tuple[bytes, dict[str, Tensor | None]]] = {
    "scale of one plane": (PLANES, {"scale": byte[None]}),
    "scale of four planes": (PLANES, {"scale": byte.expand(4, 4).contiguous()}),
    "scale of no planes": (PLANES, {"scale": byte}),
    "scale a scalar": (PLANES, {"scale": torch.tensor(1, dtype=torch.uint8)}),
    "scale not in planes": (PLANES, {"scale": torch.ones(4, dtype=torch.float16)}),
    "scale NaN": (PLANES, {"scale": torch.full((2, 4), 255, dtype=torch.uint8)}),
    "no levels": (RANGE, {"levels": None}),
    "no columns": (RANGE, {"levels": byte}),
    "fewer levels than rows": (RANGE, {"levels": byte[:3]}),
    "levels int8": (RANGE, {"levels": torch.ones(7, dtype=torch.int8)}),
    "levels of a matrix": (RANGE, {"levels": torch.ones(7, 1, dtype=torch.uint8)}),
    "levels too high": (RANGE, {"levels": torch.full((7,), 64, dtype=torch.uint8)}),
    "levels beyond bytes": (RANGE, {"levels": torch.full((7,), 128, dtype=torch.uint8)}),
    "more columns": (RANGE, {"levels": torch.full((8,), 30, dtype=torch.uint8)}),
    "far more columns": (RANGE, {"levels": torch.full((4000,), 30, dtype=torch.uint8)}),
    "shape int8": (RANGE, {"int6": torch.ones(4, 3, dtype=torch.int8)}),
    "shape of two": (RANGE, {"int6": torch.ones(2, dtype=torch.int32)}),
    "tail 0": (RANGE, {"int6": torch.tensor([0, 9, 12], dtype=torch.int32)}),
    "tail 8": (RANGE, {"int6": torch.tensor([8, 9, 12], dtype=torch.int32)}),
    "ends 0": (RANGE, {"int6": torch.tensor([7, 0, 12], dtype=torch.int32)}),
    "ends far": (RANGE, {"int6": torch.tensor([7, 2**31 - 1, 12], dtype=torch.int32)}),
    "no code": (RANGE, {"int6": torch.tensor([7, 9, 0], dtype=torch.int32)}),
    "less code": (RANGE, {"int6": torch.tensor([7, 9, 4], dtype=torch.int32)}),
    "more code": (RANGE, {"int6": torch.tensor([7, 9, 1000], dtype=torch.int32)}),
    "all code": (RANGE, {"int6": torch.tensor([7, 9, -1], dtype=torch.int32)}),
    "alike as int16": (RANGE, {"alike": torch.zeros(2, 4, dtype=torch.int16)}),
    "alike of one plane": (RANGE, {"alike": torch.zeros(1, 2, 4, dtype=torch.uint8)}),
    "alike of other rows": (RANGE, {"alike": torch.zeros(2, 2, 3, dtype=torch.uint8)}),
    "rows like themselves": (RANGE, {"alike": torch.ones(2, 2, 4, dtype=torch.uint8)}),
    "alike without range coding": (PLANES, {"alike": torch.zeros(2, 2, 4, dtype=torch.uint8)}),
}


@pytest.mark.parametrize(("data", "change"), HOSTILE_PARTS.values(), ids=HOSTILE_PARTS.keys())
def test_hostile_parts_are_refused(data: bytes, change: dict[str, Tensor | None]) -> None:
    header, payloads = parts(data)
    tensors = safetensors.torch.load(split(header, payloads, 1)[0])
    for part, tensor in change.items():
        assert tensors.pop(f"{part}/blocks.0.q", None) is not None or part == "alike"
        if tensor is not None:
            tensors[f"{part}/blocks.0.q"] = tensor
    unpack(data)
    assert refuses(*with_section(header, payloads, 1, safetensors.torch.save(tensors)))


def test_a_matrix_larger_than_its_section_is_not_allocated() -> None:
    header, payloads = parts(RANGE)
    tensors = safetensors.torch.load(split(header, payloads, 1)[0])
    tensors["scale/blocks.0.q"] = torch.ones(2, 30_000, dtype=torch.uint8)
    tensors["levels/blocks.0.q"] = torch.full((60_000,), 30, dtype=torch.uint8)
    changed = with_section(header, payloads, 1, safetensors.torch.save(tensors))
    tracemalloc.start()
    try:
        assert refuses(*changed)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def blob(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


@pytest.mark.parametrize(
    "raw",
    [
        b"x", bytes(8), struct.pack("<Q", 2**63) + b"{}", blob(b"{}"), blob(b"{"), blob(b'{"a":' * 10_000),
        blob(b'{"int6/a":{"dtype":"I8","shape":[0,4611686018427387904],"data_offsets":[0,0]},'
             b'"scale/a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}'),
        blob(b'{"int6/a":{"dtype":"I8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
        blob(b'{"int6/a":{"dtype":"I8","shape":[4],"data_offsets":[0,8]}}', bytes(4)),
        blob(b'{"int6/a":{"dtype":"F8_E8M0","shape":[4],"data_offsets":[0,4]}}', bytes(4)),
        blob(b'{"int6/a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}', bytes(4)),
        blob(b'{"int6/a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}', bytes(8)),
    ],
)  # fmt: skip
def test_hostile_blobs_are_refused(raw: bytes) -> None:
    header, payloads = parts(small_artifact())
    for k in (1, 5):
        assert refuses(*with_section(header, payloads, k, raw))


@pytest.mark.parametrize("layout", ["bytes", "planes", "range"])
def test_signs_are_no_part_of_a_file_of_more_bits(layout: Any) -> None:
    signs = {
        "int1/a": torch.zeros(4, 1, dtype=torch.uint8), "scale/a": torch.ones(4).half(),
        "cols/a": torch.tensor([3], dtype=torch.int32),
    }  # fmt: skip
    assert refuses(*forged(layout, signs))


@pytest.mark.parametrize(
    "loops",
    [
        {"loop_times": 10**9}, {"loop_times": 0, "loop_to": 10**9},
        {"loop_times": 10**30, "parallel": "lanes"}, {"bigram_rows": 10**30},
        {"bigram_rows": 10**18, "bigram_dim": 10**6}, {"bos_id": 10**30},
        {"value_embed_layers": 1, "value_embed_dim": 10**30}, {"rotation_rank": 10**30},
        {"ntk_length": 10**400},
    ],
)  # fmt: skip
def test_models_of_endless_size_are_refused_before_they_are_built(loops: dict[str, Any]) -> None:
    header, payloads = parts(small_artifact())
    header["model"] |= loops
    assert refuses(header, payloads)
