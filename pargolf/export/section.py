"""One section of an artifact: tensors to a safetensors blob that compresses well, and back.

For each tensor NAME a blob holds "float/NAME", or "intB/NAME", whose values have B bits each, and
"scale/NAME"; a matrix with a correction also the CORRECTION parts. How they look depends on the layout;
docs/formats.md has the table.
"""

import io
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pargolf.config.schema import ExportConfig
from pargolf.export.alike import Alike
from pargolf.export.entropy import ValueModel, decode_matrix, encode_matrix
from pargolf.export.quantize import (
    FLOATS,
    QUANTIZED_BITS,
    RIGHT_GROUP,
    Correction,
    Quantized,
    dequantize,
    top_value,
)
from pargolf.system.errors import UserError, require

# Layout -> what a matrix has beside its values and scales, and what it may have.
LAYOUTS = {"bytes": (), "planes": (), "range": ("levels",)}
OPTIONAL = {"bytes": (), "planes": (), "range": ("alike",)}
CORRECTION = ("lqer_left", "lqer_left_scale", "lqer_right", "lqer_right_scale")
FLOAT_OF_SIZE = {dtype.itemsize: dtype for dtype in FLOATS.values()}


def encode_section(stored: Mapping[str, Quantized | Tensor], export: ExportConfig) -> tuple[bytes, bytes]:
    """Tensors in the form in which they are stored -> their blob, and code that nothing makes smaller."""
    tensors: dict[str, Tensor] = {}
    codes = []
    for name, x in sorted(stored.items()):
        if isinstance(x, Tensor):
            tensors[f"float/{name}"] = _write_floats(x.cpu(), export)
            continue
        values = x.values.cpu().contiguous()
        tensors[f"scale/{name}"] = _write_floats(x.scale.cpu(), export)
        if (export.attn_bits == 1 or export.mlp_bits == 1) and x.bits == 1:
            tensors[f"cols/{name}"] = torch.tensor([values.size(1)], dtype=torch.int32)
            values = torch.from_numpy(np.packbits(values.numpy() > 0, axis=1))
        elif export.layout == "range":
            code, model = encode_matrix(values.numpy(), x.bits)
            codes.append(code)
            tensors[f"levels/{name}"] = torch.from_numpy(np.concatenate((model.rows, model.cols)))
            if model.alike is not None:
                tensors[f"alike/{name}"] = _planes(torch.from_numpy(model.alike))
            values = torch.tensor([model.tail, model.ends, len(code)], dtype=torch.int32)
        tensors[f"int{x.bits}/{name}"] = values
        if not export.lqer_rank and x.correction is not None:
            raise ValueError(f"{name} has a correction, but export.lqer_rank is 0")
        if export.lqer_rank and x.correction is not None:
            c = x.correction
            for part, of in zip(CORRECTION, (c.left, c.left_scale, c.right, c.right_scale), strict=True):
                of = of.cpu().contiguous()
                tensors[f"{part}/{name}"] = of if of.dtype == torch.int8 else _write_floats(of, export)
    # safetensors has an order of its own: by dtype, then name.
    return safetensors.torch.save(tensors), b"".join(codes)


def decode_section(raw: bytes, code: bytes, export: ExportConfig, values: int) -> dict[str, Tensor]:
    """The float32 tensors of a blob; UserError if it is malformed or does not hold `values` values.

    Allocates a few bytes for each byte and each value.
    """
    try:
        stored = safetensors.torch.load(raw)
    except Exception as error:  # whatever its parser raises on hostile bytes, the file is at fault
        raise UserError(f"not a safetensors blob: {error}") from None
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        part, _, name = key.partition("/")
        parts.setdefault(name, {})[part] = tensor
    tensors: dict[str, Tensor] = {}
    source = io.BytesIO(code)
    left = values
    for name, of_name in sorted(parts.items()):
        tensors[name] = _decode_tensor(name, of_name, source, export, left)
        left -= tensors[name].numel()
    require(left == 0, "wrong number of values")
    require(not source.read(1), "more code than its tensors have")
    return tensors


def _decode_tensor(
    name: str, parts: dict[str, Tensor], source: io.BytesIO, export: ExportConfig, most: int
) -> Tensor:
    if parts.keys() == {"float"}:
        floats = _read_floats(parts["float"], export)
        require(floats.numel() <= most, "more values than the section has")
        return floats.float()
    corrections = [parts.pop(part) for part in CORRECTION if part in parts] if export.lqer_rank else []
    for bits in QUANTIZED_BITS:
        beside, perhaps = LAYOUTS[export.layout], OPTIONAL[export.layout]
        if (export.attn_bits == 1 or export.mlp_bits == 1) and bits == 1:
            beside, perhaps = ("cols",), ()
        needed = {f"int{bits}", "scale", *beside}
        if needed <= parts.keys() <= needed.union(perhaps):
            matrix = _decode_matrix(parts, bits, source, export, most)
            if export.lqer_rank and corrections:
                matrix = replace(matrix, correction=_read_correction(corrections, matrix, export))
            return dequantize(matrix)
    raise UserError(f"tensor {name[:80]!r} has the parts {', '.join(sorted(parts))[:80]!r}")


def _decode_matrix(
    parts: Mapping[str, Tensor], bits: int, source: io.BytesIO, export: ExportConfig, most: int
) -> Quantized:
    values, scale = parts[f"int{bits}"], _read_floats(parts["scale"], export)
    require(scale.dtype == torch.float16 and scale.ndim == 1, "scales must be a float16 vector")
    require(bool((scale > 0).all()), "scales must be positive")
    if (export.attn_bits == 1 or export.mlp_bits == 1) and bits == 1:
        values = _read_signs(values, parts["cols"])
    elif export.layout == "range":
        levels = parts["levels"]
        require(levels.dtype == torch.uint8 and levels.ndim == 1, "levels must be uint8 bytes")
        require(values.dtype == torch.int32 and values.shape == (3,), "shape and length must be three int32")
        tail, ends, length = values.tolist()
        of_rows, of_cols = levels.numpy()[: len(scale)], levels.numpy()[len(scale) :]
        require(0 < len(of_rows) * len(of_cols) <= most and length >= 0, "a matrix of wrong size")
        alike = _read_alike(parts["alike"], len(scale)) if "alike" in parts else None
        model = ValueModel(of_rows, of_cols, tail, ends, alike)
        matrix = decode_matrix(source.read(length), model, bits)
        values = torch.from_numpy(matrix)
    require(values.dtype == torch.int8 and values.ndim == 2, "quantized values must be an int8 matrix")
    require(0 < values.numel() <= most, "a matrix of wrong size")
    require(values.size(0) == scale.numel(), "there must be one scale a row")
    top = top_value(bits)
    require(-top <= int(values.min()) and int(values.max()) <= top, f"a value lies outside -{top}..{top}")
    return Quantized(values, scale, bits)


def _read_signs(packed: Tensor, cols: Tensor) -> Tensor:
    """Eight signs a byte, the first the highest bit, each row from a byte of its own: 1 is +1, 0 is -1."""
    require(packed.dtype == torch.uint8 and packed.ndim == 2, "signs must be rows of uint8 bytes")
    require(cols.dtype == torch.int32 and cols.shape == (1,), "signs must say their columns as one int32")
    width = int(cols)
    require(width > 0 and -(-width // 8) == packed.size(1), "signs of another width than they say")
    bits = np.unpackbits(packed.numpy(), axis=1)
    require(not bits[:, width:].any(), "signs beyond the last column")
    return torch.from_numpy(bits[:, :width].astype(np.int8) * 2 - 1)


def _read_correction(parts: list[Tensor], of: Quantized, export: ExportConfig) -> Correction:
    require(len(parts) == len(CORRECTION), "a correction with parts missing")
    left, right = parts[0], parts[2]
    left_scale, right_scale = _read_floats(parts[1], export), _read_floats(parts[3], export)
    rows, cols = of.values.shape
    require(left.dtype == right.dtype == torch.int8, "a correction must be int8 matrices")
    require(left.ndim == right.ndim == 2 and left.size(1) == right.size(0) > 0, "a correction of no rank")
    require(left.size(0) == rows and right.size(1) == cols, "a correction of another shape than its matrix")
    require(left.size(1) <= min(rows, cols), "a correction of more than its matrix's rank")
    require(left_scale.shape == (1,), "a correction's left matrix must have one scale")
    require(
        right_scale.shape == (-(-right.numel() // RIGHT_GROUP),),
        f"a correction's right matrix must have a scale for every {RIGHT_GROUP} values",
    )
    return Correction(left, left_scale, right, right_scale)


def _write_floats(x: Tensor, export: ExportConfig) -> Tensor:
    x = x.contiguous()
    if export.layout in ("planes", "range"):
        x = _planes(x)
    return x


def _read_floats(x: Tensor, export: ExportConfig) -> Tensor:
    if export.layout in ("planes", "range"):
        require(x.dtype == torch.uint8 and x.ndim > 0, "planes of floats must be uint8 bytes")
        require(x.size(0) in FLOAT_OF_SIZE, f"floats of {x.size(0)} bytes")
        x = _from_planes(x, FLOAT_OF_SIZE[x.size(0)])
    require(x.dtype in FLOATS.values(), f"floats stored as {x.dtype}")
    require(bool(x.isfinite().all()), "NaN or infinite values")
    return x.clone()  # the loaded tensor may share the read-only bytes


def _read_alike(x: Tensor, rows: int) -> Alike:
    require(x.dtype == torch.uint8 and x.shape == (2, 2, rows), "rows like others must be planes of int16")
    return _from_planes(x, torch.int16).numpy()


def _planes(x: Tensor) -> Tensor:
    return x[..., None].view(torch.uint8).movedim(-1, 0).contiguous()


def _from_planes(x: Tensor, dtype: torch.dtype) -> Tensor:
    # Not contiguous(), which leaves a single value's planes as they are, apart.
    return x.movedim(0, -1).clone(memory_format=torch.contiguous_format).view(dtype).squeeze(-1)
