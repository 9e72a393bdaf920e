"""Apple's and AMD's GPUs, macOS and ARM, faked as far as that goes: none of them has been run on yet."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import pargolf
from pargolf.config.presets import load_preset
from pargolf.kernels import native
from pargolf.system import distributed, machine
from pargolf.system.errors import UserError
from pargolf.train.loop import resolve


def has(patch: pytest.MonkeyPatch, cuda: bool, mps: bool) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: cuda)
    patch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_apple_s_gpu_is_taken_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, cuda=False, mps=True)
    assert [machine.resolve_device(name) for name in ("auto", "mps", "cpu")] == ["mps", "mps", "cpu"]
    train = resolve(load_preset("demo"), "mps").train
    assert (train.device, train.dtype, train.compile) == ("mps", "float32", "off")
    with pytest.raises(UserError, match=r"train.device is cuda but PyTorch sees no GPU"):
        machine.resolve_device("cuda")
    has(monkeypatch, cuda=False, mps=False)
    with pytest.raises(UserError, match=r"train.device is mps but"):
        machine.resolve_device("mps")


def test_apple_s_gpu_finds_no_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, cuda=False, mps=True)
    with pytest.raises(UserError, match=r"--optim.soap off"):
        resolve(load_preset("demo+soap"), "mps")
    assert resolve(load_preset("demo+soap"), "cpu").optim.soap == "mlp"


def test_apple_s_gpu_is_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"), distributed.world("mps"):
        pass


def test_amd_s_gpu_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, cuda=True, mps=False)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert machine.resolve_device("auto") == "cuda"
    train = resolve(load_preset("demo"), "cuda").train
    assert (train.device, train.dtype, train.compile) == ("cuda", "bfloat16", "on")


def test_no_tensor_on_the_device_is_of_float64() -> None:
    """Apple's GPUs have none: what is computed on a device comes to the CPU first."""
    for room in ("train", "score", "library.py", "analysis/explain.py", "fit/calibrate.py"):
        path = Path(pargolf.__file__).parent / room
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            doubled = re.findall(r"\S*\.double\(\)", file.read_text())
            assert all(".cpu().double()" in call for call in doubled), (file, doubled)


def test_a_system_without_glibc_keeps_its_own_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    machine.keep_memory()


def test_memory_is_known_where_sysconf_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.memory_bytes() > 2**28
    monkeypatch.setattr(os, "sysconf_names", {})
    answer = subprocess.CompletedProcess([], 0, stdout="8589934592\n")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: answer)
    assert machine.memory_bytes() == 2**33


def test_a_cpu_without_mkldnn_or_avx_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert machine.resolve_dtype("auto", "cpu") == "float32"
    monkeypatch.setattr(native, "TYPES", {torch.float32: ("float", lambda: False)})
    assert not native.serves(torch.float32, torch.device("cpu"))


def test_clang_compiles_where_there_is_no_gcc(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(command: list[str], **options: object) -> None:
        asked.append(command[0])
        raise OSError("no compiler here")

    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/clang++" if name == "clang++" else None)
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.warns(UserWarning, match="no code of our own"):
        assert native._library.__wrapped__() is None
    assert asked == ["clang++"]
