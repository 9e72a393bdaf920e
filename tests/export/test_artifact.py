"""What is packed comes back exactly, and damage to a file never goes unnoticed."""

import hashlib
import subprocess
import sys
import zlib
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

from artifact_support import LEVEL_3, SHA, SLOTS, TINY, parts, random_state, small_artifact
from pargolf.config.schema import ExportConfig, ModelConfig
from pargolf.export import artifact
from pargolf.export.artifact import check_state, pack, pack_stored, read_artifact, unpack
from pargolf.export.codec import CODECS
from pargolf.export.entropy import ValueModel, decode_matrix
from pargolf.export.quantize import Quantized, dequantize_state, quantize_rows, quantize_state
from pargolf.export.section import LAYOUTS
from pargolf.system.errors import UserError

MAKE_BYTES = """
import sys, hashlib, torch
sys.path.insert(0, sys.argv[1])
import artifact_support as t
from pargolf.export.artifact import pack
print(hashlib.sha256(pack(t.random_state(5), t.SLOTS, t.TINY, t.LEVEL_3, t.SHA)).hexdigest())
"""


bits = st.sampled_from([4, 5, 6, 7, 8, 16, 32])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    cols=st.integers(1, 9),
    attn=bits,
    mlp=bits,
    embed=bits,
    vector=st.sampled_from([16, 32]),
    quantizer=st.sampled_from(["pargolf", "challenge"]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    codec=st.sampled_from(sorted(CODECS)),
)
def test_what_is_read_is_what_was_quantized(
    seed: int,
    cols: int,
    attn: Any,
    mlp: Any,
    embed: Any,
    vector: Any,
    quantizer: Any,
    layout: Any,
    codec: Any,
) -> None:
    export = ExportConfig(
        attn, mlp, embed, vector, quantizer=quantizer, layout=layout, codec=codec, level=3, budget=seed + 1
    )
    state = random_state(seed, cols)
    model = replace(TINY, vocab_size=1)
    a = unpack(pack(state, SLOTS, model, export, SHA))
    assert (a.model, a.export, a.tokenizer_sha256) == (model, export, SHA)
    expected = dequantize_state(quantize_state(state, SLOTS, export))
    assert a.state.keys() == expected.keys()
    for name, x in a.state.items():
        assert x.dtype == torch.float32 and torch.equal(x, expected[name]), name
    check_state(a.state, {name: tuple(x.shape) for name, x in state.items()})


@settings(max_examples=30, deadline=None)
@given(data=st.data(), layout=st.sampled_from(sorted(LAYOUTS)))
def test_each_tensor_may_have_bits_of_its_own(data: st.DataObject, layout: Any) -> None:
    """Also other ones than its neighbours of one kind, and than the settings say."""
    stored: dict[str, Quantized | Tensor] = {}
    for name, x in random_state(2).items():
        bits = data.draw(st.integers(1, 8))
        stored[name] = quantize_rows(x, bits, LEVEL_3) if x.ndim == 2 and bits > 1 else x
    export = replace(LEVEL_3, layout=layout)
    a = unpack(pack_stored(stored, SLOTS, TINY, export, SHA))
    expected = dequantize_state(stored)
    assert a.export == export and a.state.keys() == expected.keys()
    assert all(torch.equal(x, expected[name]) for name, x in a.state.items())


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
    q = stored["int6/blocks.1.q"]
    assert q.dtype == torch.int8 and q.shape == (4, 3)
    close = q.float() * stored["scale/blocks.1.q"].float()[:, None]
    assert (close - state["blocks.1.q"]).abs().max() < state["blocks.1.q"].abs().max() / 60
    assert torch.equal(stored["float/skips"], state["skips"])
    assert torch.equal(stored["float/embed.weight"], state["embed.weight"].half())
    assert sum(s["values"] for s in header["sections"]) == sum(x.numel() for x in state.values())


def test_planes_are_the_bytes_of_floats_in_turn() -> None:
    state = random_state(1)
    for layout in ("planes", "range"):
        header, payloads = parts(pack(state, SLOTS, TINY, replace(LEVEL_3, layout=layout), SHA))
        stored: dict[str, Tensor] = {}
        for section, payload in zip(header["sections"], payloads, strict=True):
            blob = payload[: section["bytes"] - section["code_bytes"]]
            stored |= safetensors.torch.load(zstandard.decompress(blob))
        floats = stored["float/blocks.0.mix"].numpy()
        assert floats.shape == (4, 2, 5, 3)
        mix = np.ascontiguousarray(np.moveaxis(floats, 0, -1)).view("<f4")[..., 0]
        assert np.array_equal(mix, state["blocks.0.mix"].numpy())
        q = quantize_rows(state["blocks.0.q"], 6, LEVEL_3)
        scale = stored["scale/blocks.0.q"].numpy()
        assert scale.shape == (2, 4)
        assert np.array_equal(np.ascontiguousarray(scale.T).view("<f2")[:, 0], q.scale.numpy())
        values = stored["int6/blocks.0.q"].numpy()
        if layout == "range":
            rows, cols = np.split(stored["levels/blocks.0.q"].numpy(), [4])
            tail, ends, length = values.tolist()
            code = payloads[1][-length:]
            values = decode_matrix(code, ValueModel(rows, cols, tail, ends), 6)
        assert np.array_equal(values, q.values.numpy())


def test_same_state_gives_same_bytes_in_any_order_and_process() -> None:
    state = random_state(5)
    data = pack(state, SLOTS, TINY, LEVEL_3, SHA)
    turned = dict(reversed(list(state.items()))), dict(reversed(list(SLOTS.items())))
    assert pack(*turned, TINY, LEVEL_3, SHA) == data
    command = [sys.executable, "-c", MAKE_BYTES, str(Path(__file__).parents[1])]
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


def test_nothing_is_packed_that_could_not_be_read() -> None:
    state = random_state(0)
    with pytest.raises(UserError, match="tokenizer_sha256"):
        pack(state, SLOTS, TINY, LEVEL_3, "none")
    for unsettled in (ExportConfig(codec="auto"), ExportConfig(layout="auto")):
        with pytest.raises(UserError, match="auto"):
            pack(state, SLOTS, TINY, unsettled, SHA)
    with pytest.raises(UserError, match="at least"):
        pack(state, SLOTS, ModelConfig(), LEVEL_3, SHA)
    with pytest.raises(ValueError, match="differ"):
        pack(state, {}, TINY, LEVEL_3, SHA)
    with pytest.raises(ValueError, match="differ"):
        pack_stored(state, {}, TINY, LEVEL_3, SHA)
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
