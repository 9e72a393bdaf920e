"""What this machine offers, and the choices a run makes from it."""

import atexit
import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pargolf.system.errors import UserError

Device = Literal["cpu", "cuda", "mps"]


def resolve_device(setting: str) -> Device:
    """The device for train.device; UserError if a GPU is asked for and there is none such.

    A ROCm PyTorch calls AMD's GPUs "cuda" too.
    """
    there: dict[Device, bool] = {
        "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True
    }  # fmt: skip
    for device, available in there.items():
        if available and setting in (device, "auto"):
            return device
    raise UserError(
        f"train.device is {setting} but PyTorch sees no GPU of that kind; use --train.device cpu or auto"
    )


def resolve_dtype(setting: str, device: str) -> str:
    """ "bfloat16" or "float32" for train.dtype (see its description)."""
    if setting != "auto":
        return setting
    if device != "cpu":  # Apple's first chips have no bfloat16
        return "bfloat16" if device == "cuda" else "float32"
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "float32"
    # Having the instructions is not enough: with AVX512-BF16 alone bfloat16 was measured to be half
    # as fast as float32 on one CPU, and nearly three times as fast on another.
    return min(("bfloat16", "float32"), key=lambda name: _matmul_seconds(getattr(torch, name)))


def _matmul_seconds(dtype: torch.dtype) -> float:
    x, weight = torch.randn(2048, 512).to(dtype), torch.randn(512, 512).to(dtype)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        F.linear(x, weight)
        times.append(time.perf_counter() - start)
    return min(times)


def resolve_compile(setting: str, device: str) -> Literal["on", "off"]:
    """ "on" or "off" for train.compile; UserError if "on" is asked for and there is no compiler for it.

    On a CPU torch.compile writes C++; on an NVIDIA or AMD GPU Triton compiles its driver, which is in C.
    """
    if setting == "off" or (setting == "auto" and device == "mps"):
        return "off"
    missing = "" if device == "mps" else _missing_for_compilation(device)
    if missing and setting == "on":
        raise UserError(f"train.compile on {device} needs {missing}; install it or use --train.compile off")
    return "off" if missing else "on"


def _missing_for_compilation(device: str) -> str:
    language, variable, known = ("C++", "CXX", ("g++", "clang++"))
    if device == "cuda":
        language, variable, known = ("C", "CC", ("gcc", "clang"))
    compilers = (os.environ.get(variable, ""), *known)
    if not any(shutil.which(name) for name in compilers if name):
        return f"a {language} compiler ({' or '.join(known)})"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "the headers of Python (Debian's python3-dev)"
    return ""


def use_compile_cache(setting: str, folder: Path) -> str:
    """Point torch.compile at `folder` ("clean") or at PyTorch's shared cache; return a line for the log.

    Stale inductor caches have changed step times and results of published runs, so a clean
    one is the default. Must be called before the first compilation.
    """
    if setting == "shared":
        return "compile cache: shared with other runs"
    # Inductor and Triton read these when they first compile.
    path = _plain_path(folder)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(path)
    os.environ["TRITON_CACHE_DIR"] = str(path / "triton")
    return f"compile cache: clean, in {folder}"


def _plain_path(folder: Path) -> Path:
    """A path to `folder` that inductor can put into a compiler's command line, which it does not quote."""
    if re.fullmatch(r"[\w./+-]*", str(folder.absolute()), re.ASCII):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix="pargolf-", dir="/tmp" if os.path.isdir("/tmp") else None)
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)  # the link, and not what it leads to
    link = Path(temporary, "compile-cache")
    link.symlink_to(folder.absolute())
    return link


def memory_bytes() -> int:
    """The memory of this machine."""
    if "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    asked = subprocess.run(["sysctl", "-n", "hw.memsize"], capture_output=True, text=True, check=True)
    return int(asked.stdout)  # macOS


def waited_seconds() -> float:
    """How long this thread could have run so far but had no core to run on; 0 where Linux does not tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def keep_memory() -> None:
    """Have this process keep the memory that it frees, for its next step; where the C library is glibc.

    By default every large tensor is new memory, which the system first clears, page by page: a
    tenth of a training step on a CPU.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        # Of glibc's malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD.
        for option, size in ((-1, 2**31 - 1), (-2, 256 << 20), (-3, 32 << 20)):
            library.mallopt(option, size)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """`array` as a tensor on `device`; a GPU fetches it in its turn, and the host does not wait."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        # Only from pinned memory without gaps: any other is first copied by the host, which waits.
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=True)


def record_event(device: torch.device) -> torch.cuda.Event | None:
    """An event at the end of a CUDA device's queue; None where the work is done when this returns."""
    if device.type != "cuda":
        synchronize(device)
        return None
    event = torch.cuda.Event(blocking=True)  # who waits sleeps: the cores belong to other ranks too
    event.record()
    return event


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue, so that a clock read next is honest."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let PyTorch compute with `count` CPU threads for the length of a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
