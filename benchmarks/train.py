"""A training step against the plain form of the challenge's scripts.

    python benchmarks/train.py
    python benchmarks/train.py record-0427 --rows 4

Steps take turns on the same random tokens: the plain form and pargolf's of the preset with full queries, and
pargolf's of the preset as it is if its queries are not full. The plain form is plain.py's, that of
record-0427 plain_record.py's. Each is a process of its own, for what one asks of its process must not serve
the others. Run nothing else meanwhile; where other work cannot be helped, OMP_NUM_THREADS=1 and `--clock
processor` time what one thread computed.
"""

import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from plain import PlainStep
from plain_record import RecordStep
from rich.table import Table
from scipy import stats
from torch import Tensor

from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.kernels.native import install
from pargolf.model.gpt import GPT
from pargolf.optim.averaging import average_of
from pargolf.optim.groups import Optimizers
from pargolf.plan.roofline import model_flops
from pargolf.system import machine
from pargolf.system.console import console

PLAIN, FULL = "plain, full q", "pargolf, full q"
DOCUMENT = 1000  # tokens, on average, where documents are kept apart: about that of the challenge's text

Clock = Literal["wall", "processor"]
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


class OurStep:
    """pargolf's training step: called with tokens and targets, returns the loss."""

    def __init__(self, config: RunConfig, dtype: torch.dtype, device: torch.device):
        machine.keep_memory()
        self.model = GPT(config.model, dtype, seed=0).to(device)
        self.optimizers = Optimizers(self.model, config.optim, dtype, average_of(self.model, config.train))
        install(self.model, self.optimizers)
        self.model.compile_regions()
        self.momentum = config.optim.muon_momentum

    def __call__(self, tokens: Tensor, targets: Tensor) -> Tensor:
        loss = self.model(tokens, targets)
        loss.backward()
        self.optimizers.step(1.0, self.momentum)
        return loss.detach()


Step = OurStep | PlainStep | RecordStep


def batch(config: RunConfig, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random tokens and targets (rows, seq_len); in documents, if the model keeps them apart."""
    torch.manual_seed(0)
    c = config.model
    span = torch.randint(c.vocab_size, (rows, c.seq_len + 1))
    if c.documents == "apart":
        span[torch.rand(span.shape) < 1 / DOCUMENT] = c.bos_id
    span = span.to(device)
    return span[:, :-1].contiguous(), span[:, 1:].contiguous()


def serve(
    pipe: Connection, form: type[Step], config: RunConfig, dtype: torch.dtype, rows: int, clock: Clock
) -> None:
    """Make steps whenever the other end of `pipe` says so, and send it the second's loss and seconds a step.

    The first, not timed, finds the caches full of what another process did. A GPU then makes ten in a row.
    """
    device = torch.device(machine.resolve_device("auto"))
    step, now = form(config, dtype, device), CLOCKS[clock]
    step.model.load_state_dict(GPT(config.model, seed=0).state_dict())
    tokens, targets = batch(config, rows, device)
    repeats = 10 if device.type == "cuda" else 1
    while pipe.recv():
        step(tokens, targets)
        machine.synchronize(device)
        start = now()
        losses = [step(tokens, targets) for _ in range(repeats)]
        machine.synchronize(device)
        pipe.send((float(losses[0]), (now() - start) / repeats))


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the matrix multiply, best of several: 4096 x 1024 by 1024 x 1024, on a GPU 8192 cubed."""
    n, m = (8192, 8192) if device.type == "cuda" else (4096, 1024)
    x, weight = (torch.randn(size, m, dtype=dtype, device=device) for size in (n, m))
    times = []
    for _ in range(20):
        machine.synchronize(device)
        start = time.perf_counter()
        F.linear(x, weight)
        machine.synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * n * m * m / min(times)


def times_faster(slow: Sequence[float], fast: Sequence[float]) -> str:
    """Median ratio of what was timed in the same turn, with the 95 % interval of that median."""
    if slow is fast:
        return "1"
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    low, high = stats.quantile_test(ratios, q=1.0, p=0.5).confidence_interval(0.95)
    return f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"


def main(
    preset: tyro.conf.Positional[str] = "lowrank-q192",
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    rows: int = 8,
    turns: int = 15,
    clock: Clock = "wall",
) -> None:
    """Print tokens/s, the ratios to the plain form and to full queries, and the share of the multiply's peak.

    From 6 turns on the intervals of the ratios are known.
    """
    its_dtype: torch.dtype = getattr(torch, dtype)
    config = load_preset(preset)
    full = dataclasses.replace(config, model=dataclasses.replace(config.model, q_rank=0))
    plain_form = RecordStep if preset.partition("+")[0] == "record-0427" else PlainStep
    steps: dict[str, tuple[type[Step], RunConfig]] = {PLAIN: (plain_form, full), FULL: (OurStep, full)}
    if config.model.q_rank:
        steps[f"pargolf, q_rank {config.model.q_rank}"] = OurStep, config
    device = torch.device(machine.resolve_device("auto"))
    name_of_it = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    )
    top = peak(its_dtype, device)
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name, (form, its) in steps.items():
        pipes[name], end = spawn.Pipe()
        spawn.Process(target=serve, args=(end, form, its, its_dtype, rows, clock), daemon=True).start()
    losses: dict[str, list[float]] = {name: [] for name in steps}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):  # the first one compiles
        for name in sorted(steps, reverse=turn % 2 == 1):  # nobody always follows the same one
            pipes[name].send(True)
            loss, seconds = pipes[name].recv()
            losses[name].append(loss)
            if turn:
                times[name].append(seconds)
    for pipe in pipes.values():
        pipe.send(False)

    tokens = rows * config.model.seq_len
    console.print(
        f"{preset}: {rows} x {config.model.seq_len} tokens, {dtype}, {name_of_it},"
        f" median of {turns} by the clock of the {clock}; matrix multiply {top / 1e9:,.0f} GFLOP/s",
        highlight=False,
        soft_wrap=True,
    )
    columns = ("ms", "tokens/s", "times plain", "times full q", "of peak", "loss, step 2", "next turn")
    table = Table("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, (_, its) in steps.items():
        median = statistics.median(times[name])
        share = model_flops(its) * tokens / median / top
        table.add_row(
            name, f"{1e3 * median:,.1f}", f"{tokens / median:,.0f}",
            *(times_faster(times[other], times[name]) for other in (PLAIN, FULL)),
            f"{share:.0%}", *(f"{losses[name][i]:.4f}" for i in (0, 1)),
        )  # fmt: skip
    console.width = 140  # a file has none
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main)
