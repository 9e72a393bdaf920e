"""Small artifacts, and what takes them apart, for the tests of the container."""

import hashlib
import json
import struct
import zlib
from typing import Any

import torch
from torch import Tensor

from pargolf.config.kinds import Slot
from pargolf.config.schema import ExportConfig, ModelConfig
from pargolf.export.artifact import pack

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


def random_state(seed: int, cols: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(4, cols, generator=g) for name in SLOTS}
    state["blocks.0.mix"] = torch.randn(2, 5, 3, generator=g)
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
