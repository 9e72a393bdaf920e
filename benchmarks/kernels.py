"""Where a training step's time goes, kernel by kernel: python benchmarks/kernels.py lowrank-q192 --rows 64.

Steps of a preset on random tokens, as train.py makes them, first timed and then watched by torch.profiler:
on a GPU its kernels, on a CPU the operators.
"""

import time
from pathlib import Path
from typing import Literal

import torch
import tyro
from figures import Figures, Rows, hand_on, in_words, spread
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from train import OurStep, batch, compile_unless, peak_bytes, processor

from pargolf.config.presets import load_preset
from pargolf.system import machine

WARM_UP = 3  # steps that compile and fill the allocator
SHOWN = 25  # kernels, of what may be hundreds
WIDEST = 90  # characters of a kernel's name in a table


def measure(
    preset: str, dtype: Literal["bfloat16", "float32"], rows: int, steps: int, eager: bool
) -> Figures:
    """ms of a step, of them with the device at work, peak memory, and the kernels that take the longest."""
    compile_unless(eager)
    device, config = torch.device(machine.resolve_device("auto")), load_preset(preset)
    step = OurStep(config, getattr(torch, dtype), device)
    tokens, targets = batch(config, rows, device)
    for _ in range(WARM_UP):
        step(tokens, targets)
    times = []
    for _ in range(steps):
        machine.synchronize(device)
        start = time.perf_counter()
        step(tokens, targets)
        machine.synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    with torch.profiler.profile() as profiler:
        for _ in range(steps):
            step(tokens, targets)
        machine.synchronize(device)
    # On a GPU an operator's event repeats its kernels' time, and so does a marked region's.
    kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    events = [e for e in profiler.key_averages() if e.device_type == kind and not e.is_user_annotation]
    kernels = [
        {"kernel": e.key, "calls": e.count / steps, "ms": own_ms(e, device) / steps}
        for e in sorted(events, key=lambda e: own_ms(e, device), reverse=True)
    ]
    where = f"{dtype}, {processor(device)}, {steps} steps"
    return {
        "title": f"{preset}: {rows} x {config.model.seq_len} tokens, {where}",
        "ms": spread(times),
        "device_ms": sum(k["ms"] for k in kernels),
        "peak_bytes": peak_bytes(device),
        "kernels": kernels[:SHOWN],
        "others": len(kernels[SHOWN:]),
        "others_ms": sum(k["ms"] for k in kernels[SHOWN:]),
    }


def own_ms(event: FunctionEventAvg, device: torch.device) -> float:
    """What an event took without those inside it."""
    own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
    return float(own) / 1e3


def in_rows(figures: Figures) -> Rows:
    """One row a kernel, then the others, the sum and the step as the clock saw it."""
    total = figures["device_ms"]

    def row(name: str, calls: str, ms: float) -> list[str]:
        return [name, calls, f"{ms:.2f}", f"{ms / total:.1%}"]

    return [
        ["kernel", "calls a step", "ms a step", "share"],
        *(row(k["kernel"][:WIDEST], f"{k['calls']:g}", k["ms"]) for k in figures["kernels"]),
        row(f"{figures['others']} others", "", figures["others_ms"]),
        row("all", "", total),
        ["a step by the clock, without the profiler", "", in_words(figures["ms"], 2), ""],
    ]


def main(
    preset: tyro.conf.Positional[str] = "lowrank-q192",
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    rows: int = 8,
    steps: int = 10,
    eager: bool = False,
    figures: Path | None = None,
) -> None:
    """Print the table, and write its figures to the file `figures`."""
    found = measure(preset, dtype, rows, steps, eager)
    hand_on(found, in_rows(found), figures)


if __name__ == "__main__":
    tyro.cli(main)
