"""How long training will take: on H100s from a roofline, on this CPU from a timed try."""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pargolf.challenge import GPUS
from pargolf.config.presets import load_preset
from pargolf.config.schema import ModelConfig, RunConfig
from pargolf.kernels.native import install_attention
from pargolf.model.gpt import GPT
from pargolf.plan.cost import activation_memory
from pargolf.plan.roofline import H100, least_seconds, model_flops, step_cost
from pargolf.system import machine

# Seconds of a step of so many tokens of this preset on one H100 SXM (docs/performance.md).
MEASURED_ON, MEASURED_TOKENS, MEASURED_SECONDS = "lowrank-q192", 65_536, 0.0488
# Of the time a step takes as written; measured to be 0.54 to 0.85 on CPUs.
COMPILED_SHARE = 0.67
TRIED_TOKENS = 2048
LONGEST_TRIED = 8192  # tokens a row; a longer one would keep the user waiting
TRIED_SECONDS = 1.0
# Share of the try that it waited for a core: up to 0.005 on an idle EPYC, from 0.06 beside a busy process.
DISTURBED = 0.03


@dataclass(frozen=True)
class Forecast:
    """A whole training on one machine."""

    machine: str
    gpus: int
    """0 stands for the CPU."""
    step_seconds: float
    steps: int
    """As many as `max_seconds` and `iterations` allow."""
    tokens: int

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds


def forecasts(config: RunConfig) -> list[Forecast]:
    """One for 8 H100s (if they can share the micro-batches), for one H100, and for this CPU.

    The forecast for this CPU runs a short training step, which takes a second or two. It is left out
    where that step would need most of the machine's memory.
    """
    ranks = [n for n in (GPUS, 1) if config.train.micro_batches % n == 0]
    rows = [(f"{n} x {H100.name}", n, h100_step_seconds(config, n)) for n in ranks]
    dtype = machine.resolve_dtype(config.train.dtype, "cpu")
    if _tried_memory(_tried(config.model), dtype) < machine.memory_bytes() / 2:
        threads = config.train.threads or torch.get_num_threads()
        waited, start = machine.waited_seconds(), time.perf_counter()
        with machine.cpu_threads(threads):
            seconds = cpu_step_seconds(config, dtype)
        disturbed = machine.waited_seconds() - waited > DISTURBED * (time.perf_counter() - start)
        note = " (disturbed by other processes)" if disturbed else ""
        rows.append((f"this CPU, {threads} threads{note}", 0, seconds))
    return [_whole_run(config, *row) for row in rows]


def h100_step_seconds(config: RunConfig, ranks: int) -> float:
    """Seconds of a step on `ranks` H100 SXM, if it gets the share of their peaks that was measured on one.

    The time to launch kernels is not counted, which bounds small models.
    """
    measured = load_preset(MEASURED_ON)
    train = dataclasses.replace(measured.train, batch_tokens=MEASURED_TOKENS, micro_batches=1)
    share = least_seconds(dataclasses.replace(measured, train=train), H100) / MEASURED_SECONDS
    return _mean_over_run(config, lambda c: least_seconds(c, H100, ranks)) / share


def _mean_over_run(config: RunConfig, cost: Callable[[RunConfig], float]) -> float:
    """The mean `cost` of a step, over a run that may begin without its loops."""
    share = config.train.loop_share if config.model.loop_times else 0.0
    once = dataclasses.replace(config.model, loop_times=0)
    return share * cost(dataclasses.replace(config, model=once)) + (1 - share) * cost(config)


def _tried(c: ModelConfig) -> ModelConfig:
    """Two layers of it, which cost what two others do."""
    length = min(c.seq_len, LONGEST_TRIED)
    return dataclasses.replace(c, n_layers=2, seq_len=length, loop_times=0, parallel="off")


def _tried_memory(c: ModelConfig, dtype: str) -> int:
    with torch.device("meta"):
        model = GPT(c)
    # Weights and gradients, and casts of both
    values = sum(weight.numel() for weight in model.parameters())
    return 16 * values + activation_memory(model, max(TRIED_TOKENS, c.seq_len), dtype)


def cpu_step_seconds(config: RunConfig, dtype: str) -> float:
    """Seconds of a step here, if its arithmetic goes as fast as that of two layers, timed on a few rows."""
    c = _tried(config.model)
    rows = max(1, TRIED_TOKENS // c.seq_len)
    machine.keep_memory()  # as training does
    model = GPT(c, getattr(torch, dtype), seed=0)
    compiled = machine.resolve_compile(config.train.compile, "cpu") == "on"
    if compiled:  # then training has it too, which is the largest part of what compiling changes
        install_attention(model)
    tokens = torch.randint(c.vocab_size, (rows, c.seq_len + 1))
    times: list[float] = []
    end = time.perf_counter() + TRIED_SECONDS
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        times.append(time.perf_counter() - start)
    rate = model_flops(dataclasses.replace(config, model=c)) * rows * c.seq_len / min(times)
    flops = _mean_over_run(config, lambda c: sum(work.flops for work in step_cost(c).values()))
    return flops / rate * (COMPILED_SHARE if compiled else 1.0)


def _whole_run(config: RunConfig, name: str, gpus: int, step_seconds: float) -> Forecast:
    t = config.train
    steps = t.iterations
    if t.time_limit:
        steps = min(steps, math.ceil(t.time_limit / step_seconds))  # the step that reaches it is ended
    return Forecast(name, gpus, step_seconds, steps, steps * t.batch_tokens)
