"""A training step while other processes want the cores: python benchmarks/busy.py.

Steps with PyTorch's own way of waiting and with ours take turns, each in a process of its own: on an idle
machine, then beside one and two processes that compute all the time. Run nothing else meanwhile.
"""

import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch
import tyro
from rich.table import Table
from scipy import stats
from train import OurStep

from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.system import machine
from pargolf.system.console import console
from pargolf.system.threads import SPINS

WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
LOADS = ("idle", "one busy", "two busy")
# Ends by itself if this program was killed.
COMPUTE = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(100_000))"


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute, for the length of the block."""
    command = [sys.executable, "-c", COMPUTE, str(os.getpid())]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        time.sleep(0.1 * count)  # until they have started
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def serve(pipe: Connection, config: RunConfig) -> None:
    """Make so many steps as the other end of `pipe` says, and send it the seconds of each."""
    dtype = getattr(torch, machine.resolve_dtype("auto", "cpu"))
    step = OurStep(config, dtype, torch.device("cpu"))
    length = config.model.seq_len
    span = torch.randint(config.model.vocab_size, (config.train.batch_tokens // length, length + 1))
    tokens, targets = span[:, :-1].contiguous(), span[:, 1:].contiguous()
    while steps := pipe.recv():
        marks = [time.perf_counter()]
        for _ in range(steps):
            step(tokens, targets)
            marks.append(time.perf_counter())
        pipe.send([end - start for start, end in itertools.pairwise(marks)])


def start(config: RunConfig, environment: dict[str, str]) -> Connection:
    """A process that makes steps, whose threads wait as `environment` says; the pipe to it."""
    for name in WAITING:
        os.environ.pop(name, None)
    os.environ.update(environment)
    spawn = multiprocessing.get_context("spawn")
    pipe, end = spawn.Pipe()
    spawn.Process(target=serve, args=(end, config), daemon=True).start()
    return pipe


def milliseconds(times: list[float]) -> str:
    """The median, and from 6 on its 95 % interval."""
    low, high = stats.quantile_test(times, q=0.1, p=0.5).confidence_interval(0.95)
    return f"{1e3 * statistics.median(times):,.0f} ({1e3 * low:,.0f} to {1e3 * high:,.0f})"


def main(preset: str = "demo", turns: int = 9, steps: int = 3, also: tuple[str, ...] = ()) -> None:
    """Print the median of the turns' median steps in ms, with its 95 % interval, and over PyTorch's idle.

    `also` names other ways to wait, such as OMP_WAIT_POLICY=passive, or both joined by a comma.
    """
    config = load_preset(preset)
    ways: dict[str, dict[str, str]] = {"PyTorch's default": {}, "pargolf's": SPINS}
    ways |= {text: dict(part.split("=") for part in text.split(",")) for text in also}
    pipes = {name: start(config, environment) for name, environment in ways.items()}
    for pipe in pipes.values():  # compile, one after the other
        pipe.send(2)
        pipe.recv()
    times: dict[tuple[str, str], list[float]] = {(name, load): [] for name in ways for load in LOADS}
    for turn in range(turns):
        for count, load in enumerate(LOADS):
            for name in sorted(ways, reverse=turn % 2 == 1):
                with busy(count):
                    pipes[name].send(steps)
                    times[name, load].append(statistics.median(pipes[name].recv()))
    for pipe in pipes.values():
        pipe.send(0)

    table = Table("step of " + preset + ", ms", *LOADS, "of PyTorch's idle")
    plain = times["PyTorch's default", "idle"]
    for name in ways:
        # Turn by turn, so that what slows all of a turn takes no part.
        ratios = [
            statistics.median(a / b for a, b in zip(times[name, load], plain, strict=True)) for load in LOADS
        ]
        row = (milliseconds(times[name, load]) for load in LOADS)
        table.add_row(name, *row, ", ".join(f"{ratio:.2f}" for ratio in ratios))
    console.width = 140  # a file has none
    console.print(table)
    console.print(f"{torch.get_num_threads()} CPU threads, median of {turns} turns of {steps} steps")


if __name__ == "__main__":
    tyro.cli(main)
