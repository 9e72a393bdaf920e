"""Ways to compute attention, on one layer's inputs: python benchmarks/attention.py.

PyTorch's choice, each of its backends, FlexAttention, and on a CPU native.cpp take turns, forward and
backward. Run nothing else meanwhile.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from figures import Figures, Rows, hand_on
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from train import compile_unless, processor

from pargolf.config.schema import ModelConfig
from pargolf.kernels.native import TYPES, attention_kernel, serves
from pargolf.model.attention import document_blocks
from pargolf.system import machine

# What SHAPE says, with the mean length of documents kept apart (0: one a row)
Shape = tuple[int, int, int, int, int, int]
# The full-size model, the demo, narrow heads, the records from April 10 2026 on
CPU_SHAPES: tuple[Shape, ...] = (
    (8, 1024, 8, 4, 64, 0),
    (8, 256, 8, 4, 32, 0),
    (16, 256, 8, 4, 20, 0),
    (4, 2048, 8, 4, 64, 1000),
)
# One GPU's share of a step of the full-size model and of the records
GPU_SHAPES: tuple[Shape, ...] = ((64, 1024, 8, 4, 64, 0), (48, 2048, 8, 4, 64, 1000))
SHAPE = "batch, length, heads, key heads, head size, documents"
CHOICE = "PyTorch's choice"
BACKENDS = (
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
)  # fmt: skip

# q (batch, length, heads, head size), k and v (batch, length, key heads, head size) -> the shape of q
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def pytorch(starts: Tensor | None, backend: SDPBackend | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention by `backend`; RuntimeError if that does not serve."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = None
    if starts is not None:
        places = torch.arange(q.size(2), device=q.device)
        mask = ((places >= starts[:, :, None]) & (places <= places[:, None]))[:, None]
    attend = partial(F.scaled_dot_product_attention, q, k, v, mask, is_causal=mask is None, enable_gqa=True)
    if backend is None:
        return attend().transpose(1, 2)
    with sdpa_kernel(backend):
        return attend().transpose(1, 2)


def flex(blocks: BlockMask, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlexAttention, compiled; RuntimeError where it has no backward pass."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    y = compiled_flex(q, k, v, block_mask=blocks, enable_gqa=True)
    assert isinstance(y, Tensor)
    return y.transpose(1, 2)


compiled_flex = torch.compile(flex_attention, dynamic=False)


def ways(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Way]:
    """What is compared, by its name."""
    batch, length, heads, kv_heads, d_head, document = shape
    starts = document_starts(batch, length, document).to(device)
    known = starts if document else None
    found: dict[str, Way] = {CHOICE: partial(pytorch, known, None)}
    for backend in BACKENDS:
        found[backend.name.lower()] = partial(pytorch, known, backend)
    found["FlexAttention"] = partial(flex, document_blocks(starts))
    c = ModelConfig(seq_len=length, n_heads=heads, kv_heads=kv_heads, d_model=heads * d_head)
    kernel = attention_kernel(c, dtype, device)
    if kernel is not None:
        found["native.cpp"] = lambda q, k, v: kernel(q, k, v, known)
    return found


def document_starts(batch: int, length: int, document: int) -> Tensor:
    """For each token (batch, length) int32 the place where its document starts: 0 if `document` is."""
    if not document:
        return torch.zeros(batch, length, dtype=torch.int32)
    places = torch.arange(length, dtype=torch.int32)
    return torch.where(torch.rand(batch, length) < 1 / document, places, 0).cummax(1).values


def seconds(way: Way, inputs: list[Tensor], direction: Tensor) -> tuple[float, float]:
    """What a forward and a backward pass take."""
    machine.synchronize(direction.device)
    start = time.perf_counter()
    out = way(*inputs)
    machine.synchronize(direction.device)
    middle = time.perf_counter()
    torch.autograd.grad(out, inputs, direction)
    machine.synchronize(direction.device)
    return middle - start, time.perf_counter() - middle


def compared(shape: Shape, dtype: torch.dtype, device: torch.device, turns: int) -> list[Figures]:
    """For each way its medians in ms and its ratio to PyTorch's choice, or why it does not serve."""
    torch.manual_seed(0)
    batch, length, heads, kv_heads, d_head, _ = shape
    inputs = [
        torch.randn(batch, length, n, d_head).to(device, dtype).requires_grad_()
        for n in (heads, kv_heads, kv_heads)
    ]
    direction = torch.randn(batch, length, heads, d_head).to(device, dtype)
    serving: dict[str, Way] = {}
    refused: list[Figures] = []
    for name, way in ways(shape, dtype, device).items():
        try:
            seconds(way, inputs, direction)  # compiles
            serving[name] = way
        except RuntimeError as error:
            refused.append({"way": name, "refused": str(error).partition("\n")[0]})
    times = [{name: seconds(way, inputs, direction) for name, way in serving.items()} for _ in range(turns)]
    measured: list[Figures] = []
    for name in serving:
        forward, backward = (1e3 * statistics.median(turn[name][i] for turn in times) for i in (0, 1))
        faster = statistics.median(sum(turn[CHOICE]) / sum(turn[name]) for turn in times)
        measured.append({"way": name, "forward_ms": forward, "backward_ms": backward, "times_choice": faster})
    return measured + refused


def measure(turns: int, rows: int, eager: bool) -> Figures:
    """Every shape, in bfloat16 on a GPU, on a CPU in each dtype that it has native.cpp for."""
    compile_unless(eager)
    machine.keep_memory()
    warnings.filterwarnings("ignore", category=UserWarning)  # why each backend refuses, one by one
    device = torch.device(machine.resolve_device("auto"))
    dtypes = [torch.bfloat16] if device.type == "cuda" else [d for d in TYPES if serves(d, device)]
    shapes: list[Figures] = []
    for whole in GPU_SHAPES if device.type == "cuda" else CPU_SHAPES:
        shape = (rows or whole[0], *whole[1:])
        for dtype in dtypes:
            shapes.append({
                "shape": shape,
                "dtype": str(dtype).removeprefix("torch."),
                "ways": compared(shape, dtype, device, turns),
            })  # fmt: skip
    return {"title": f"{processor(device)}, median of {turns}", "shapes": shapes}


def in_rows(figures: Figures) -> Rows:
    """One row a shape, dtype and way."""
    rows = [[SHAPE, "dtype", "way", "forward + backward, ms", f"times {CHOICE}"]]
    for its in figures["shapes"]:
        for way in its["ways"]:
            told = (
                [way["refused"], ""]
                if "refused" in way
                else [f"{way['forward_ms']:.1f} + {way['backward_ms']:.1f}", f"{way['times_choice']:.2f}"]
            )
            rows.append([", ".join(map(str, its["shape"])), its["dtype"], way["way"], *told])
    return rows


def main(turns: int = 15, rows: int = 0, eager: bool = False, figures: Path | None = None) -> None:
    """Print the table, and write its figures to the file `figures`; `rows`: a batch of so many."""
    found = measure(turns, rows, eager)
    hand_on(found, in_rows(found), figures)


if __name__ == "__main__":
    tyro.cli(main)
