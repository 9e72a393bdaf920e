"""Bytes and seconds of our range coder and of the challenge's best record, on the same integers.

    python benchmarks/codec.py runs/demo
    python benchmarks/codec.py

The first quantizes a run's matrices as the run's settings say, and at 12.85 standard deviations a row
(SDClip, challenge thread 1394; the embedding in 7 bits at 14). An embedding that stays float there has
8 bits here. The second takes normal random numbers in the shapes of the record of April 27 2026: a case
for seconds alone, since trained matrices have structure.

lrzip: the record's way (thread 1855). A bucket for each matrix's role; the rows of the embedding, of
    the queries and of the MLP's first matrix in the greedy order of nearest neighbours in L1; matrices
    transposed; `lrzip -z -L 9`, which is ZPAQ; the orders and the scales by brotli, without a container
lrzip -T: the same without lrzip's own test, which stores what LZO does not shrink
brotli: the same buckets by brotli, rows as they are
range: the sections of our file, layout "range" and codec "brotli", whole

Seconds are of the clock and, in brackets, of processors, which other work on the machine slows less.
lrzip is a program of its own and no part of pargolf: apt-get install lrzip.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import brotli
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from pargolf.config.kinds import Slot
from pargolf.config.schema import ExportConfig
from pargolf.config.validation import TOP_LEVEL
from pargolf.export.artifact import lay_out
from pargolf.export.codec import compress, decompress
from pargolf.export.quantize import Quantized, dequantize_state, quantize_state
from pargolf.export.section import decode_section
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.run.folder import open_run
from pargolf.system.console import console
from pargolf.train.checkpoint import load_weights

SDCLIP = ExportConfig(attn_sigmas=12.85, mlp_sigmas=12.85, embed_sigmas=14, embed_bits=7)
OURS = ExportConfig(layout="range", codec="brotli", level=TOP_LEVEL["brotli"])
SORTED = re.compile(r"embed|attn\.q|mlp\.fc")
RECORD = {
    "attn.q": (512, 512), "attn.k": (256, 512), "attn.v": (256, 512), "attn.out": (512, 512),
    "mlp.fc": (2048, 512), "mlp.proj": (512, 2048),
}  # fmt: skip

Stored = Mapping[str, Quantized]
Coder = Callable[[bytes], bytes]
Read = Callable[[], dict[str, Tensor]]

brotli_best: Coder = partial(brotli.compress, quality=11, lgwin=24)


def lrzip(*options: str) -> Coder:
    def run(data: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "in"), Path(folder, "out")
            source.write_bytes(data)
            command = ["lrzip", "-q", *options, "-o", str(target), str(source)]
            subprocess.run(command, check=True, capture_output=True)
            return target.read_bytes()

    return run


def nearest_order(values: NDArray[np.int8]) -> NDArray[np.uint16]:
    """The order in which each row of (rows, cols) is followed by the nearest in L1 of those that are left."""
    rows = torch.from_numpy(values).float()
    left = torch.arange(1, len(rows))
    order = [0]
    while len(left):
        nearest = torch.cdist(rows[order[-1]][None], rows[left], p=1).argmin()
        order.append(int(left[nearest]))
        left = left[left != order[-1]]
    return np.array(order, np.uint16)


def in_buckets(stored: Stored, sort: bool, code: Coder, decode: Coder) -> tuple[int, Read]:
    roles: dict[str, list[str]] = {}
    for name in stored:
        roles.setdefault(re.sub(r"\d+\.", "", name), []).append(name)
    values = {name: x.values.numpy() for name, x in stored.items()}
    orders = {name: nearest_order(x) for name, x in values.items() if sort and SORTED.search(name)}
    for name, order in orders.items():
        values[name] = values[name][order]
    parts = [code(b"".join(values[name].T.tobytes() for name in names)) for names in roles.values()]
    parts.append(brotli_best(b"".join(order.tobytes() for order in orders.values())))
    parts.append(brotli_best(b"".join(x.scale.numpy().tobytes() for x in stored.values())))

    def read() -> dict[str, Tensor]:
        with ThreadPoolExecutor(len(roles)) as threads:  # as the record does
            decoded = list(threads.map(decode, parts[: len(roles)]))
        back: dict[str, Quantized | Tensor] = {}
        for names, data in zip(roles.values(), decoded, strict=True):
            left = np.frombuffer(data, np.int8)
            for name in names:
                rows, cols = stored[name].values.shape
                matrix = np.empty((rows, cols), np.int8)
                matrix[orders.get(name, slice(None))] = left[: rows * cols].reshape(cols, rows).T
                back[name] = replace(stored[name], values=torch.from_numpy(matrix))
                left = left[rows * cols :]
        return dequantize_state(back)

    return sum(map(len, parts)), read


def in_our_file(stored: Stored, slots: Mapping[str, Slot]) -> tuple[int, Read]:
    blobs = lay_out(stored, slots, OURS)
    packed = [compress(blob.raw, OURS.codec, OURS.level) for blob in blobs]

    def read() -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for blob, data in zip(blobs, packed, strict=True):
            raw = decompress(data, OURS.codec, len(blob.raw))
            state |= decode_section(raw, blob.code, OURS, blob.values)
        return state

    return sum(map(len, packed)) + sum(len(blob.code) for blob in blobs), read


def random_record() -> tuple[dict[str, Tensor], dict[str, Slot]]:
    torch.manual_seed(0)
    state, slots = {"embed.weight": torch.randn(8192, 512)}, {"embed.weight": Slot("embed", None)}
    for layer in range(11):
        for role, shape in RECORD.items():
            name = f"blocks.{layer}.{role}.weight"
            state[name], slots[name] = torch.randn(shape), Slot(role.partition(".")[0], layer)
    return state, slots


def seconds() -> NDArray[np.float64]:
    """Of the clock and of processors, those of finished children among them."""
    return np.array([time.perf_counter(), sum(os.times()[:4])])


def compare(
    title: str, stored: Stored, slots: Mapping[str, Slot], names: tuple[str, ...], repeats: int
) -> None:
    ways = {
        "lrzip": lambda: in_buckets(stored, True, lrzip("-z", "-L", "9"), lrzip("-d")),
        "lrzip -T": lambda: in_buckets(stored, True, lrzip("-z", "-L", "9", "-T"), lrzip("-d")),
        "brotli": lambda: in_buckets(stored, False, brotli_best, brotli.decompress),
        "range": lambda: in_our_file(stored, slots),
    }
    count = sum(x.values.numel() for x in stored.values())
    table = Table("way", "bytes", "bits a value", "write s", "read s")
    wanted = dequantize_state(stored)
    for name in names:
        spent = []
        for _ in range(repeats):
            start = seconds()
            size, read = ways[name]()
            written = seconds()
            state = read()
            spent.append((written - start, seconds() - written))
            if any(not torch.equal(state[x], wanted[x]) for x in wanted):
                raise RuntimeError(f"{name} does not read what it wrote")
        shown = [f"{clock:.2f} ({cpu:.2f})" for clock, cpu in np.median(spent, axis=0)]
        table.add_row(name, f"{size:,}", f"{8 * size / count:.4f}", *shown)
    console.print(f"{title}: {len(stored)} matrices, {count:,} values", highlight=False)
    console.print(table)


def main(
    run: tyro.conf.Positional[Path | None] = None,
    ways: tuple[str, ...] = ("lrzip", "lrzip -T", "brotli", "range"),
    repeats: int = 1,
) -> None:
    """Print a table for each way to quantize, medians of so many repeats."""
    if shutil.which("lrzip") is None:
        console.print("lrzip is not installed (apt-get install lrzip): its rows are left out")
        ways = tuple(name for name in ways if "lrzip" not in name)
    if run is None:
        state, slots = random_record()
        cases = {"normal random numbers at 12.85 standard deviations": SDCLIP}
    else:
        folder, config = open_run(run)
        model = GPT(config.model)
        load_weights(folder.checkpoint, model)
        state, slots = dict(model.state_dict()), tensor_kinds(model)
        bits = config.export.embed_bits if config.export.embed_bits <= 8 else 8
        cases = {f"{run}, its settings": replace(config.export, embed_bits=bits), f"{run}, SDClip": SDCLIP}
    for title, export in cases.items():
        found = quantize_state(state, slots, export)
        stored = {name: x for name, x in sorted(found.items()) if isinstance(x, Quantized)}
        compare(title, stored, {name: slots[name] for name in stored}, ways, repeats)


if __name__ == "__main__":
    tyro.cli(main)
