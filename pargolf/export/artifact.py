"""The container `model.pgz`: a trained model in few bytes, safe to read from strangers.

    magic "pargolf\\0", version uint32, total length uint64,   } little-endian
    header length uint32, raw header length uint32             }
    header: JSON, zlib: model and export config, tokenizer SHA-256, table of sections
    sections: one a (kind, layer), one for all vectors; each a compressed safetensors blob
    SHA-256 of everything before it

`section` says how a section looks, `codec` what compresses it.
"""

import hashlib
import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pargolf.config.kinds import TENSOR_KINDS, Slot
from pargolf.config.schema import ExportConfig, ModelConfig
from pargolf.config.settings import export_from_dict, model_from_dict
from pargolf.export.codec import CODECS, compress, decompress
from pargolf.export.quantize import Quantized, quantize_state
from pargolf.export.section import decode_section, encode_section
from pargolf.system.errors import UserError, require

MAGIC = b"pargolf\0"
VERSION = 2
PREFIX = struct.Struct("<8sIQII")
CHECKSUM_BYTES = 32
MAX_HEADER_BYTES = 1 << 20
# Largest file, largest sum of raw sections, largest float32 state: five times the published model.
MAX_BYTES = 512 << 20


@dataclass(frozen=True)
class Section:
    """One row of the table of sections, in file order. `values` counts the model's parameters in it.

    Its last `code_bytes` bytes are range-coded values, on which no codec was tried.
    """

    kind: str
    layer: int | None
    codec: str
    bytes: int
    raw_bytes: int
    code_bytes: int
    values: int


@dataclass(frozen=True)
class Header:
    """What an artifact says about itself; `sections_start` is the offset of the first section."""

    model: ModelConfig
    export: ExportConfig
    tokenizer_sha256: str
    sections: tuple[Section, ...]
    sections_start: int


@dataclass(frozen=True)
class Artifact:
    """A decoded file. `state` holds float32 tensors, as the scored model must use them.

    The names and shapes in `state` are the file's claim: hold them against the model with
    `check_state`. The sizes in `model` are bounded by the values in the file, so building that
    model is safe.
    """

    model: ModelConfig
    export: ExportConfig
    tokenizer_sha256: str
    sections: tuple[Section, ...]
    state: dict[str, Tensor]


def pack(
    state: Mapping[str, Tensor],
    slots: Mapping[str, Slot],
    model: ModelConfig,
    export: ExportConfig,
    tokenizer_sha256: str,
) -> bytes:
    """The whole file for a float state dict, quantized by the bits of each kind; see `pack_stored`.

    Raises ValueError if `state` and `slots` differ in names, UserError on weights that cannot be
    quantized, and on anything that `unpack` would refuse.
    """
    return pack_stored(quantize_state(state, slots, export), slots, model, export, tokenizer_sha256)


def pack_stored(
    stored: Mapping[str, Quantized | Tensor],
    slots: Mapping[str, Slot],
    model: ModelConfig,
    export: ExportConfig,
    tokenizer_sha256: str,
) -> bytes:
    """The whole file for tensors in the form in which they are stored; the same input gives the same bytes.

    Each quantized tensor has bits of its own, each other one is float16 or float32; what `export`
    says of bits is not looked at. Raises ValueError if `stored` and `slots` differ in names,
    UserError on anything that `unpack` would refuse, such as a codec or layout left at "auto".
    """
    return seal(lay_out(stored, slots, export), model, export, tokenizer_sha256)


@dataclass(frozen=True)
class Blob:
    """A section before it is compressed."""

    kind: str
    layer: int | None
    raw: bytes
    code: bytes
    values: int


def lay_out(
    stored: Mapping[str, Quantized | Tensor], slots: Mapping[str, Slot], export: ExportConfig
) -> list[Blob]:
    """The sections of a file in their order, laid out as `export` says.

    Raises ValueError if `stored` and `slots` differ in names.
    """
    if stored.keys() != slots.keys():
        raise ValueError(f"tensors and slots differ: {sorted(stored.keys() ^ slots.keys())}")
    order = list(TENSOR_KINDS)
    # All vectors share a section: there are many, they are tiny, and each section costs bytes.
    groups: dict[tuple[int, int], list[str]] = {}
    for name, slot in sorted(slots.items()):
        layer = -1 if slot.layer is None or TENSOR_KINDS[slot.kind].role == "vector" else slot.layer
        groups.setdefault((order.index(slot.kind), layer), []).append(name)
    blobs = []
    for (kind, layer), names in sorted(groups.items()):
        tensors = {name: stored[name] for name in names}
        values = sum((x.values if isinstance(x, Quantized) else x).numel() for x in tensors.values())
        layer_or_none = None if layer < 0 else layer
        blobs.append(Blob(order[kind], layer_or_none, *encode_section(tensors, export), values))
    return blobs


def seal(blobs: Sequence[Blob], model: ModelConfig, export: ExportConfig, tokenizer_sha256: str) -> bytes:
    """The file of sections laid out as `export` says, compressed as it says."""
    payloads = [compress(blob.raw, export.codec, export.level) + blob.code for blob in blobs]
    sections = [
        Section(x.kind, x.layer, export.codec, len(payload), len(x.raw), len(x.code), x.values)
        for x, payload in zip(blobs, payloads, strict=True)
    ]
    header = {
        "model": asdict(model),
        "export": asdict(export),
        "tokenizer_sha256": tokenizer_sha256,
        "sections": [asdict(section) for section in sections],
    }
    data = assemble(header, payloads)
    read_header(data, "the model to pack")
    return data


def assemble(header: Any, payloads: list[bytes]) -> bytes:
    """Frame a header (plain JSON values) and the sections' bytes, without looking at either."""
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    small = compress(text, "zlib", 9)
    total = PREFIX.size + len(small) + sum(map(len, payloads)) + CHECKSUM_BYTES
    body = b"".join((PREFIX.pack(MAGIC, VERSION, total, len(small), len(text)), small, *payloads))
    return body + hashlib.sha256(body).digest()


def read_header(data: bytes, source: str = "artifact") -> Header:
    """Everything about a file but its weights, the sections not yet decompressed.

    Checks magic, version, length, checksum, header and the sizes of sections, in this order;
    raises UserError, starting with `source`, at the first fault.
    """
    try:
        return _read_header(data)
    except UserError as error:
        raise UserError(f"{source}: {_short(error)}") from None


def unpack(data: bytes, source: str = "artifact") -> Artifact:
    """Decode a file; `source` names it in errors.

    Raises UserError on anything malformed, also where the checksum is right, and never
    allocates more than a few times MAX_BYTES.
    """
    header = read_header(data, source)
    state: dict[str, Tensor] = {}
    at = header.sections_start
    for section in header.sections:
        place = section.kind if section.layer is None else f"{section.kind} of layer {section.layer}"
        try:
            middle, end = at + section.bytes - section.code_bytes, at + section.bytes
            raw = decompress(data[at:middle], section.codec, section.raw_bytes)
            tensors = decode_section(raw, data[middle:end], header.export, section.values)
            require(not tensors.keys() & state.keys(), "a tensor is there twice")
        except UserError as error:
            raise UserError(f"{source}: section {place}: {_short(error)}") from None
        state |= tensors
        at = end
    return Artifact(header.model, header.export, header.tokenizer_sha256, header.sections, state)


def read_artifact(path: Path) -> Artifact:
    """The artifact in a file; UserError if it is missing, too large or malformed."""
    try:
        if not path.is_file():
            raise UserError(f"no artifact {path}; make it with `pargolf pack`")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than any artifact, {MAX_BYTES:,} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return unpack(data, str(path))


def check_state(state: Mapping[str, Tensor], expected_shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UserError, naming the first difference, unless `state` has exactly these names and shapes."""
    for name in sorted(expected_shapes.keys() | state.keys()):
        if name not in state:
            raise UserError(f"the artifact lacks tensor {name}, which its model config asks for")
        if name not in expected_shapes:
            raise UserError(f"the artifact holds tensor {name[:80]!r}, which its model has no place for")
        shape, expected = tuple(state[name].shape), tuple(expected_shapes[name])
        if shape != expected:
            raise UserError(f"tensor {name} of the artifact has shape {shape}; its model needs {expected}")


def _read_header(data: bytes) -> Header:
    require(data[: len(MAGIC)] == MAGIC, "not a pargolf artifact")
    require(len(data) >= PREFIX.size + CHECKSUM_BYTES, "cut off")
    _, version, total, size, raw_size = PREFIX.unpack_from(data)
    require(version == VERSION, f"artifact version {version}; this pargolf reads version {VERSION}")
    require(total == len(data), f"has {len(data):,} bytes, should have {total:,}; copy it again")
    require(total <= MAX_BYTES, f"larger than any artifact, {MAX_BYTES:,} bytes")
    checksum = hashlib.sha256(memoryview(data)[:-CHECKSUM_BYTES]).digest()
    require(checksum == data[-CHECKSUM_BYTES:], "wrong checksum; copy it again")
    start = PREFIX.size + size
    require(start + CHECKSUM_BYTES <= total and raw_size <= MAX_HEADER_BYTES, "header too large")
    text = decompress(data[PREFIX.size : start], "zlib", raw_size)
    try:
        header = _parse_header(json.loads(text), start)
    except (ValueError, RecursionError, OverflowError) as error:
        raise UserError(f"malformed header: {error}") from None
    sections = header.sections
    require(sum(s.bytes for s in sections) == total - CHECKSUM_BYTES - start, "sections do not fill the file")
    require(
        sum(s.raw_bytes for s in sections) <= MAX_BYTES, f"holds more than {MAX_BYTES:,} bytes of weights"
    )
    values = sum(s.values for s in sections)
    require(4 * values <= MAX_BYTES, f"holds more than {MAX_BYTES // 4:,} values")
    _require_plausible(header.model, values)
    return header


def _parse_header(header: Any, start: int) -> Header:
    fields = {"model", "export", "tokenizer_sha256", "sections"}
    require(
        isinstance(header, dict) and header.keys() == fields, f"header must have {', '.join(sorted(fields))}"
    )
    model = model_from_dict(header["model"])
    export = export_from_dict(header["export"])
    require("auto" not in (export.codec, export.layout), "codec and layout must be settled, not auto")
    tokenizer = header["tokenizer_sha256"]
    require(
        isinstance(tokenizer, str) and re.fullmatch("[0-9a-f]{64}", tokenizer) is not None,
        "tokenizer_sha256 must be 64 lower-case hex digits",
    )
    require(isinstance(header["sections"], list), "the table of sections must be a list")
    sections = tuple(_parse_section(row, model.n_layers) for row in header["sections"])
    require(len({(s.kind, s.layer) for s in sections}) == len(sections), "a section is there twice")
    return Header(model, export, tokenizer, sections, start)


def _parse_section(row: Any, n_layers: int) -> Section:
    names = Section.__dataclass_fields__.keys()
    require(isinstance(row, dict) and row.keys() == names, f"a section must have {', '.join(names)}")
    for name, known in (("kind", TENSOR_KINDS), ("codec", CODECS)):
        value = row[name]
        require(
            isinstance(value, str) and value in known, f"section {name} must be one of {', '.join(known)}"
        )
    for name in ("bytes", "raw_bytes", "values"):
        require(type(row[name]) is int and row[name] >= 1, f"section {name} must be a positive integer")
    code = row["code_bytes"]
    require(type(code) is int and 0 <= code < row["bytes"], "section code_bytes must lie in its bytes")
    layer = row["layer"]
    require(
        layer is None or (type(layer) is int and 0 <= layer < n_layers), "section layer is not in the model"
    )
    return Section(**row)


def _require_plausible(m: ModelConfig, values: int) -> None:
    """A config must be backed by weights in the file, or building its model could take all memory."""
    # Every matrix of a layer: with some at rank 1, the others alone could be huge.
    attention = ((m.d_model, m.q_rank), (m.d_kv, m.k_rank), (m.d_kv, m.v_rank), (m.d_model, m.out_rank))
    mlp = ((m.d_mlp, m.fc_rank), (m.d_mlp, m.proj_rank))
    least = m.vocab_size * m.d_model
    for matrices, degree in ((attention, m.legendre_attn), (mlp, m.legendre_mlp)):
        layer = sum(rank * (m.d_model + n) if rank else m.d_model * n for n, rank in matrices)
        # The first layer's, the last one's, and what those between are made of.
        least += layer * (degree + 3 if degree else m.n_layers)
    require(
        least <= values,
        f"its model config needs at least {_digits(least)} values, but {_digits(values)} are there",
    )
    require(m.seq_len * m.d_model <= MAX_BYTES // 4, f"model.seq_len {_digits(m.seq_len)} is too long")


def _digits(n: int) -> str:
    return (
        f"{n:,}" if n < 10**15 else "far too many"
    )  # also keeps clear of Python's limit on printing integers


def _short(error: UserError) -> str:
    """The message, without what a hostile file may have smuggled in by the page."""
    return " ".join(str(error)[:300].split())
