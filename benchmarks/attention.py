"""native.cpp against PyTorch's attention, on one layer's inputs: python benchmarks/attention.py.

The two take turns, forward and backward. Run nothing else meanwhile.
"""

import statistics
import time

import torch
import torch.nn.functional as F
import tyro
from rich.table import Table
from torch import Tensor

from pargolf.config.schema import ModelConfig
from pargolf.kernels.native import TYPES, AttentionKernel, attention_kernel
from pargolf.system import machine
from pargolf.system.console import console

# batch, length, heads, key heads, head size, and mean length of documents kept apart (0: one a row): the
# full-size model, the demo, narrow heads, the records from April 10 2026 on
SHAPES = (
    (8, 1024, 8, 4, 64, 0),
    (8, 256, 8, 4, 32, 0),
    (16, 256, 8, 4, 20, 0),
    (4, 2048, 8, 4, 64, 1000),
)


def pytorch(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = None
    if starts is not None:
        places = torch.arange(q.size(2))
        mask = ((places >= starts[:, :, None]) & (places <= places[:, None]))[:, None]
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)
    return y.transpose(1, 2)


def document_starts(batch: int, length: int, document: int) -> Tensor | None:
    """For each token (batch, length) int32 the place where its document starts."""
    if not document:
        return None
    places = torch.arange(length, dtype=torch.int32)
    return torch.where(torch.rand(batch, length) < 1 / document, places, 0).cummax(1).values


def seconds(
    attention: AttentionKernel, inputs: list[Tensor], starts: Tensor | None, direction: Tensor
) -> tuple[float, float]:
    """What a forward and a backward pass take."""
    start = time.perf_counter()
    out = attention(*inputs, starts)
    middle = time.perf_counter()
    torch.autograd.grad(out, inputs, direction)
    return middle - start, time.perf_counter() - middle


def main(turns: int = 15) -> None:
    """Print the medians and the ratio of the sums, for each dtype that this CPU has native.cpp for."""
    machine.keep_memory()
    shape_of = "batch, length, heads, key heads, head size, documents"
    table = Table(shape_of, "dtype", "PyTorch ms", "native.cpp ms", "ratio", "GPU")
    for shape in SHAPES:
        batch, length, heads, kv_heads, d_head, document = shape
        c = ModelConfig(seq_len=length, n_heads=heads, kv_heads=kv_heads, d_model=heads * d_head)
        for dtype in TYPES:
            kernel = attention_kernel(c, dtype, torch.device("cpu"))
            if kernel is None:
                continue
            torch.manual_seed(0)
            inputs = [
                torch.randn(batch, length, n, d_head).to(dtype).requires_grad_()
                for n in (heads, kv_heads, kv_heads)
            ]
            direction = torch.randn(batch, length, heads, d_head).to(dtype)
            starts = document_starts(batch, length, document)
            times = [
                [seconds(f, inputs, starts, direction) for f in (pytorch, kernel)] for _ in range(turns + 1)
            ][1:]
            theirs, ours = (
                [statistics.median(t) for t in zip(*side, strict=True)] for side in zip(*times, strict=True)
            )
            table.add_row(
                ", ".join(map(str, shape)), str(dtype).removeprefix("torch."),
                *(f"{1e3 * f:.1f} + {1e3 * b:.1f}" for f, b in (theirs, ours)),
                f"{statistics.median(sum(a) / sum(b) for a, b in times):.2f}", "not yet run",
            )  # fmt: skip
    console.width = 140  # a file has none
    console.print(table)
    console.print(f"median of {turns}, {torch.get_num_threads()} CPU threads")


if __name__ == "__main__":
    tyro.cli(main)
