"""How training grows: with ranks, length of context, layers, vocabulary.

    python benchmarks/scale.py ranks
    python benchmarks/scale.py seq-len
    python benchmarks/scale.py layers
    python benchmarks/scale.py vocab
    python benchmarks/scale.py forecast    # what `pargolf plan` says of this CPU, and what is so

Each point is a process of its own (torchrun where it has two ranks) that compiles the model as in
training and times optimizer steps on random tokens: the median, and the peak of resident memory
during them. It takes one to three minutes a part; run nothing else meanwhile.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich import box
from rich.table import Table

from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.config.settings import from_dict, to_dict
from pargolf.data.batches import Batches
from pargolf.data.shards import open_split, shard_name, write_shard
from pargolf.kernels import native
from pargolf.model.gpt import GPT
from pargolf.optim.groups import Optimizers
from pargolf.plan.forecast import cpu_step_seconds
from pargolf.plan.roofline import model_flops
from pargolf.system import distributed, launch, machine
from pargolf.system.console import console
from pargolf.train.loop import Training

GROWTH: dict[str, tuple[str, list[int]]] = {
    "seq-len": ("seq_len", [128, 256, 512, 1024, 2048]),
    "layers": ("n_layers", [2, 4, 8]),
    "vocab": ("vocab_size", [1024, 4096, 16384]),
}
STEPS = 9
POINT = "SCALE_POINT"  # environment variable: the settings of the point this process is to measure


def main(part: tyro.conf.Positional[Literal["ranks", "seq-len", "layers", "vocab", "forecast"]]) -> None:
    """Print one table: growth around the demo preset with 8,192 tokens a step, or forecasts."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        console.width = 140  # a file has none
        console.print(forecasts() if part == "forecast" else growth(part))


def forecasts() -> Table:
    """Predicted and measured steps of 2,048 tokens, of a small and a full-size model."""
    cores = len(os.sched_getaffinity(0))
    table = Table(title=f"2,048 tokens a step, {cores} threads", title_justify="left", box=box.MARKDOWN)
    for column in ("preset", "dtype", "predicted ms", "measured ms", "off by"):
        table.add_column(column, justify="left" if column in ("preset", "dtype") else "right")
    for dtype in ("float32", "bfloat16"):
        for name in ("demo", "lowrank-q192"):
            config = load_preset(name)
            changes: dict[str, Any] = dict(batch_tokens=2048, micro_batches=1, dtype=dtype, compile="on")
            config = replace(config, train=replace(config.train, **changes))
            predicted = cpu_step_seconds(config, dtype)
            measured = measured_apart(config, 1, cores)["seconds"]
            table.add_row(
                name, dtype, f"{1000 * predicted:,.0f}", f"{1000 * measured:,.0f}",
                f"{predicted / measured - 1:+.0%}",
            )  # fmt: skip
    return table


def growth(part: str) -> Table:
    """One row a point of `part`."""
    base = load_preset("demo")
    dtype: Any = machine.resolve_dtype("auto", "cpu")
    base = replace(base, train=replace(base.train, batch_tokens=8192, micro_batches=2, dtype=dtype))
    cores = len(os.sched_getaffinity(0))
    title = f"demo, {base.train.batch_tokens:,} tokens a step, {dtype}, {cores} CPU cores"
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    columns = ("ranks", "threads a rank") if part == "ranks" else (part, "MFLOP a token")
    for column in (*columns, "ms a step", "tokens/s", "ratio", "peak MB a rank", "tokens/s on GPUs"):
        table.add_column(column, justify="right")
    first = 0.0
    for labels, config, ranks, threads in points(part, base, cores):
        found = measured_apart(config, ranks, threads)
        first = first or found["seconds"]
        rate = base.train.batch_tokens / found["seconds"]
        table.add_row(
            *labels, f"{1000 * found['seconds']:.0f}", f"{rate:,.0f}", f"{found['seconds'] / first:.2f}",
            f"{found['peak'] / 1e6:,.0f}", "not yet run",
        )  # fmt: skip
    return table


def points(part: str, base: RunConfig, cores: int) -> list[tuple[tuple[str, str], RunConfig, int, int]]:
    """Labels, settings, ranks and threads a rank of each row."""
    if part == "ranks":
        return [((str(r), str(n)), base, r, n) for r, n in ((1, 1), (1, cores), (cores, 1))]
    field, values = GROWTH[part]
    rows = []
    for value in values:
        changes: dict[str, Any] = {field: value}
        config = replace(base, model=replace(base.model, **changes))
        rows.append(((f"{value:,}", f"{model_flops(config) / 1e6:.1f}"), config, 1, cores))
    return rows


def measured_apart(config: RunConfig, ranks: int, threads: int) -> dict[str, float]:
    """What `measure` finds in a process, or several, of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    done = subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else []), __file__],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), POINT: json.dumps(to_dict(config))},
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(config: RunConfig) -> None:
    """Print the median seconds of a step, and the highest memory of a rank in bytes."""
    c, t = config.model, config.train
    machine.keep_memory()
    with distributed.world("cpu") as device, tempfile.TemporaryDirectory() as folder:
        tokens = np.random.default_rng(launch.rank()).integers(c.vocab_size, size=100_000)
        write_shard(Path(folder) / shard_name("train", 0), tokens)
        batches = Batches(open_split(Path(folder), "train"), config)
        dtype = getattr(torch, t.dtype)
        model = GPT(c, dtype, seed=0)
        optimizers = Optimizers(model, config.optim, dtype)
        native.install_attention(model)
        model.compile_regions()
        replica = distributed.data_parallel(model, device)
        training = Training(config, device, model, replica, optimizers, batches)
        training.warm_up(2)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of compiling
        times = []
        for number in range(STEPS):
            distributed.barrier()
            start = time.perf_counter()
            training.step(number, 1.0, 0.95)
            distributed.barrier()
            times.append(time.perf_counter() - start)
        (peak,) = distributed.agree(peak_bytes())
        if launch.is_main():
            print(json.dumps({"seconds": statistics.median(times), "peak": peak}))


def peak_bytes() -> float:
    """Most resident memory of this process since its peak was last forgotten (Linux)."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return 1024.0 * int(line.split()[1])


if __name__ == "__main__":
    if POINT in os.environ:
        measure(from_dict(json.loads(os.environ[POINT])))
    else:
        tyro.cli(main)
