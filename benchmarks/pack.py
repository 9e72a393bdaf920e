"""Bytes and seconds of every layout and codec for one set of quantized weights.

    python benchmarks/pack.py runs/demo
    python benchmarks/pack.py --matrices 4

The second takes so many matrices of 512 x 1536 with Student-t(5) rows in place of a run's weights.
"values" are the sections of quantized matrices with all scales at 1, so that nothing else counts;
"file" is the whole artifact. Entropies are of order 0: of the values of each row, and of each
tensor. That of a short row is no bound for an honest coder: 160 values have at most 160 different
ones, and nobody tells the decoder which. All take turns, several times, in one process.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.table import Table
from scipy import stats
from torch import Tensor

from pargolf.config.kinds import Slot
from pargolf.config.schema import ExportConfig
from pargolf.config.validation import TOP_LEVEL
from pargolf.export.artifact import CHECKSUM_BYTES, Blob, lay_out, pack_stored, read_header
from pargolf.export.codec import compress, decompress
from pargolf.export.quantize import Quantized, quantize_rows, quantize_state
from pargolf.export.section import LAYOUTS, decode_section
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.run.folder import open_run
from pargolf.system.console import console
from pargolf.train.checkpoint import load_weights


def entropy_bytes(values: NDArray[np.int8]) -> float:
    """Order-0 entropy of values, in bytes for all of them."""
    counts = np.unique(values, return_counts=True)[1]
    return float(-np.sum(counts * np.log2(counts / values.size))) / 8


def heavy_tailed(count: int) -> dict[str, Quantized | Tensor]:
    rng = np.random.default_rng(0)
    return {
        f"w{i}": quantize_rows(torch.from_numpy(rng.standard_t(5, (512, 1536))), 6, ExportConfig())
        for i in range(count)
    }


def ideal_bytes(stored: Mapping[str, Quantized | Tensor]) -> float:
    """What the values of `heavy_tailed` take for a coder that is told their distribution and scales."""
    bits = 0.0
    for x in stored.values():
        assert isinstance(x, Quantized)
        values, scale = x.values.double().numpy(), x.scale.double().numpy()[:, None]
        edges = (np.where(values + side == side * 32, side * np.inf, values + side / 2) for side in (-1, 1))
        below, above = (stats.t.cdf(edge * scale, 5) for edge in edges)
        bits -= float(np.log2(above - below).sum())
    return bits / 8


def without_scales(stored: Mapping[str, Quantized | Tensor]) -> dict[str, Quantized | Tensor]:
    return {
        name: replace(x, scale=torch.ones_like(x.scale))
        for name, x in stored.items()
        if isinstance(x, Quantized)
    }


def main(
    run: tyro.conf.Positional[Path | None] = None,
    matrices: int = 4,
    layouts: tuple[str, ...] = tuple(LAYOUTS),
    codecs: tuple[str, ...] = tuple(TOP_LEVEL),
    repeats: int = 3,
) -> None:
    """Print the table, each codec at its highest level."""
    files: dict[tuple[str, str], list[int]] = {}  # overhead, then each section
    if run is None:
        title = f"{matrices} matrices of 512 x 1536, Student-t(5), int6, seed 0"
        stored = heavy_tailed(matrices)
        slots = {name: Slot("mlp", layer) for layer, name in enumerate(stored)}
    else:
        folder, config = open_run(run)
        model = GPT(config.model)
        load_weights(folder.checkpoint, model)
        slots = tensor_kinds(model)
        stored = quantize_state(dict(model.state_dict()), slots, config.export)
        title = str(run)
        for layout in layouts:
            for codec in codecs:
                export = ExportConfig(layout=layout, codec=codec, level=TOP_LEVEL[codec])  # type: ignore[arg-type]
                data = pack_stored(stored, slots, config.model, export, "0" * 64)
                header = read_header(data)
                overhead = header.sections_start + CHECKSUM_BYTES
                files[layout, codec] = [overhead, *(section.bytes for section in header.sections)]
    weights = without_scales(stored)
    slots = {name: slots[name] for name in weights}
    values = [x.values.numpy() for x in weights.values() if isinstance(x, Quantized)]
    count = sum(v.size for v in values)
    by_tensor = sum(map(entropy_bytes, values))
    by_row = sum(entropy_bytes(row) for v in values for row in v)

    blobs: dict[str, list[Blob]] = {}
    small: dict[tuple[str, str], int] = {}
    writing: dict[tuple[str, str], list[float]] = {(x, y): [] for x in layouts for y in codecs}
    reading: dict[tuple[str, str], list[float]] = {(x, y): [] for x in layouts for y in codecs}
    for _ in range(repeats):
        for layout in layouts:
            start = time.perf_counter()
            export = ExportConfig(layout=layout)  # type: ignore[arg-type]
            blobs[layout] = lay_out(weights, slots, export)
            laid_out = time.perf_counter() - start
            for codec in codecs:
                start = time.perf_counter()
                packed = [compress(blob.raw, codec, TOP_LEVEL[codec]) for blob in blobs[layout]]
                writing[layout, codec].append(laid_out + time.perf_counter() - start)
                start = time.perf_counter()
                for blob, data in zip(blobs[layout], packed, strict=True):
                    raw = decompress(data, codec, len(blob.raw))
                    decode_section(raw, blob.code, export, blob.values)
                reading[layout, codec].append(time.perf_counter() - start)
                small[layout, codec] = sum(map(len, packed)) + sum(len(blob.code) for blob in blobs[layout])

    console.print(
        f"{title}: {count:,} values, entropy by row {8 * by_row / count:.3f}, by tensor"
        f" {8 * by_tensor / count:.3f} bits; {torch.get_num_threads()} CPU threads, median of {repeats}",
        highlight=False,
        soft_wrap=True,
    )
    names = (
        "layout", "codec", "values, bytes", "bits a value", "/ by row", "/ by tensor", "file, bytes",
        "write s", "read s",
    )  # fmt: skip
    table = Table(*names)
    for pair, total in small.items():
        table.add_row(
            *pair, f"{total:,}", f"{8 * total / count:.3f}", f"{total / by_row:.4f}",
            f"{total / by_tensor:.4f}", f"{sum(files[pair]):,}" if files else "",
            f"{statistics.median(writing[pair]):.2f}", f"{statistics.median(reading[pair]):.2f}",
        )  # fmt: skip
    console.width = 140  # a file has none
    console.print(table)
    if run is None:
        known = 8 * ideal_bytes(stored) / count
        console.print(f"{known:.3f} bits for a coder that knows how they are distributed", highlight=False)
    if files:
        best = min(sum(sizes) for sizes in files.values())
        mixed = sum(map(min, zip(*files.values(), strict=True)))
        console.print(f"the best layout and codec for each section would save {best - mixed:,} bytes more")


if __name__ == "__main__":
    tyro.cli(main)
