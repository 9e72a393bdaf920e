"""What training computes on CPUs instead of PyTorch's operations: native.cpp, compiled here.

Attention, because the gradient of PyTorch's can take as long there as all multiplies of a layer, and
the symmetric products of Muon, because half of each is enough (docs/performance.md).
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from pargolf.config.schema import ModelConfig
from pargolf.model.gpt import GPT
from pargolf.optim.groups import Optimizers
from pargolf.optim.muon import plain_product

# q (B, T, n_heads, d_head), k and v (B, T, kv_heads, d_head) and perhaps starts (B, T) int32 -> causal
# attention, of the shape of q, in which a query sees no key before its start
AttentionKernel = Callable[..., Tensor]
SIDE = 32  # native.cpp takes rows of a multiple of so many tokens, and matrices of such a side

# No -ffast-math: a library built with it changes how the whole process treats tiny numbers.
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno",
    "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC",
)  # fmt: skip


# The element's type in native.cpp, and whether this CPU multiplies it
TYPES = {
    torch.bfloat16: ("bf16", torch.cpu._is_avx512_bf16_supported),
    torch.float32: ("float", torch.cpu._is_avx2_supported),
}


# It holds whole rows of scores and of a head: memory that it does not get ends the process.
WIDEST_HEAD = 256


def install(model: GPT, optimizers: Optimizers) -> str:
    """Put what serves here into a built model and its Muon, for training; returns a line for the log."""
    muon = optimizers.muon
    if serves(muon.ns_dtype, model.embed.weight.device):
        muon.product = symmetric_product
    return "attention: our own, compiled for this CPU" if install_attention(model) else "attention: PyTorch's"


def install_attention(model: GPT) -> bool:
    """Put the attention that serves here into every layer of a built model; False if that is PyTorch's."""
    kernel = attention_kernel(model.config, model.dtype, model.embed.weight.device)
    if kernel is None:
        return False

    def attend(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | BlockMask | None = None) -> Tensor:
        return kernel(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), starts).transpose(1, 2)

    for block in model.blocks:
        block.attn.attend = attend  # type: ignore[method-assign]
    return True


def attention_kernel(c: ModelConfig, dtype: torch.dtype, device: torch.device) -> AttentionKernel | None:
    """What to use in training instead of PyTorch's attention, or None if that serves.

    There is something for CPUs with a C++ compiler and the instructions (AVX512-BF16 or AMX for bfloat16,
    AVX2 for float32), in rows of a multiple of 32 tokens, for heads of up to WIDEST_HEAD.
    """
    fits = c.seq_len % SIDE == 0 and c.d_head <= WIDEST_HEAD
    if not fits or not serves(dtype, device):
        return None
    cuts = dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
    return functools.partial(attention, size=quick_size(c.d_head) if cuts else c.d_head)


def quick_size(d_head: int) -> int:
    """The least size of a head, from `d_head` on, that AMX multiplies quickly.

    PyTorch's library cuts it into the largest even parts up to 32 that divide it: 46 values go two by two,
    which takes twice the time of 48.
    """
    return next(n for n in count(d_head, 2) if n <= 32 or any(n % part == 0 for part in range(8, 33, 2)))


def attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None, size: int = 0) -> Tensor:
    """An `AttentionKernel` for what `attention_kernel` finds served. Zeros fill heads up to `size`."""
    starts = None if starts is None else starts.contiguous()
    d_head = q.size(-1)
    if size > d_head:  # zeros change no product
        q, k, v = (F.pad(x, (0, size - d_head)) for x in (q, k, v))
    out, _ = _attention(q.contiguous(), k.contiguous(), v.contiguous(), starts, d_head**-0.5)
    return out[..., :d_head]


def symmetric_product(a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float) -> Tensor:
    """A `SymmetricProduct` for what `serves`, of which it computes one half and mirrors it.

    It leaves matrices of other sides than multiples of SIDE to PyTorch.
    """
    if a.size(1) % SIDE or a.size(2) % 2:
        return plain_product(a, b, c, alpha, beta)
    left = a.contiguous()
    right = left if a is b else b.contiguous()
    out = torch.empty(len(a), a.size(1), a.size(1), dtype=a.dtype)
    tensors = (left, right, None if c is None else c.contiguous(), torch.empty_like(right), out)
    pointers = [ctypes.c_void_p(None if x is None else x.data_ptr()) for x in tensors]
    factors, sizes = map(ctypes.c_float, (alpha, beta)), map(ctypes.c_int64, a.shape)
    _function("symmetric", a.dtype)(*pointers, *factors, *sizes)
    return out


def serves(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether native.cpp is there for tensors of this kind."""
    if device.type != "cpu" or dtype not in TYPES:
        return False
    name, has_instructions = TYPES[dtype]
    library = _library() if has_instructions() else None
    return library is not None and bool(library[f"can_multiply_{name}"]())


@functools.cache
def _library() -> ctypes.CDLL | None:
    """native.cpp, compiled and loaded: two seconds or less, so it is not kept."""
    compiler = os.environ.get("CXX") or ("g++" if shutil.which("g++") else "clang++")
    torch_libraries = Path(torch.__file__).parent / "lib"
    source = resources.files("pargolf.kernels") / "native.cpp"
    with tempfile.TemporaryDirectory() as folder, resources.as_file(source) as path:
        library = f"{folder}/native.so"
        command = [compiler, *FLAGS, str(path), "-o", library, f"-L{torch_libraries}", "-ltorch_cpu"]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)
            return ctypes.CDLL(library)
        except subprocess.CalledProcessError as error:
            warnings.warn(f"{compiler} cannot compile native.cpp: {error.stderr[:500]}", stacklevel=2)
        except OSError as error:
            warnings.warn(f"no code of our own for this CPU: {error}", stacklevel=2)
    return None


def _function(name: str, dtype: torch.dtype) -> Any:
    library = _library()
    assert library is not None  # or nobody would call
    return library[f"{name}_{TYPES[dtype][0]}"]


def _call(name: str, q: Tensor, kv_heads: int, scale: float, *tensors: Tensor | None) -> None:
    """Call a function for attention on the memory of q and `tensors`."""
    batch, length, heads, d_head = q.shape
    sizes = map(ctypes.c_int64, (batch, length, heads, kv_heads, d_head))
    pointers = (ctypes.c_void_p(None if x is None else x.data_ptr()) for x in (q, *tensors))
    _function(name, q.dtype)(*pointers, ctypes.c_float(scale), *sizes)


@torch.library.custom_op("pargolf::attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """An `AttentionKernel` that also returns the logarithms of the sums of its weights (B, n_heads, T)."""
    out, log_sums = _shapes(q, k, v, starts, scale)
    _call("forward", q, k.size(2), scale, k, v, starts, out, log_sums)
    return out, log_sums


@_attention.register_fake
def _shapes(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q.shape
    return torch.empty_like(q), q.new_empty(batch, heads, length, dtype=torch.float32)


@torch.library.custom_op("pargolf::attention_backward", mutates_args=())
def _gradients(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, scale: float, out: Tensor, log_sums: Tensor,
    d_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    d_q, d_k, d_v = gradients = _gradients_shapes(q, k, v, starts, scale, out, log_sums, d_out)
    _call("backward", q, k.size(2), scale, k, v, starts, out, log_sums, d_out, d_q, d_k, d_v)
    return gradients


@_gradients.register_fake
def _gradients_shapes(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, scale: float, out: Tensor, log_sums: Tensor,
    d_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, starts, out, log_sums = ctx.saved_tensors
    return (*_gradients(q, k, v, starts, ctx.scale, out, log_sums, d_out.contiguous()), None, None)


_attention.register_autograd(_backward, setup_context=_keep)
