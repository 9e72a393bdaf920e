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
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from figures import Figures, Rows, hand_on, in_words, spread
from plain import PlainStep
from plain_record import RecordStep
from torch import Tensor

from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.kernels.native import install
from pargolf.model.gpt import GPT
from pargolf.optim.averaging import average_of
from pargolf.optim.groups import Optimizers
from pargolf.plan.roofline import model_flops
from pargolf.system import machine
from pargolf.system.errors import UserError

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
    pipe: Connection,
    form: type[Step],
    config: RunConfig,
    dtype: torch.dtype,
    rows: int,
    clock: Clock,
    eager: bool,
) -> None:
    """Make steps whenever the other end of `pipe` says so; send it the second's loss, seconds a step and the
    `peak_bytes`, or in words what went wrong.

    The first, not timed, finds the caches full of what another process did. A GPU then makes ten in a row.
    """
    device = torch.device(machine.resolve_device("auto"))
    compile_unless(eager)
    try:
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
            seconds = (now() - start) / repeats
            pipe.send((float(losses[0]), seconds, peak_bytes(device)))
            if device.type == "cuda":
                torch.cuda.empty_cache()  # one GPU's memory need not hold all forms at once
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        raise


def compile_unless(eager: bool) -> None:
    """Have torch.compile leave everything as it is, if `eager`: to try a benchmark in seconds."""
    torch.compiler.set_stance("force_eager" if eager else "default")


def answer(name: str, pipe: Connection) -> tuple[float, float, int | None]:
    """What `serve` sends of one turn; UserError, of one line, if there is no such thing."""
    try:
        sent = pipe.recv()
    except EOFError:
        raise UserError(f"{name}: its process was killed") from None
    if isinstance(sent, str):
        raise UserError(f"{name}: {' '.join(sent.split())}")
    loss, seconds, most = sent
    return loss, seconds, most


def peak_bytes(device: torch.device) -> int | None:
    """The most that this process's tensors took of a GPU's memory so far; None on a CPU."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None


def peak_flops(dtype: torch.dtype, device: torch.device) -> float:
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


def processor(device: torch.device) -> str:
    """What computes, in words."""
    return torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"


def forms(preset: str) -> dict[str, tuple[type[Step], RunConfig]]:
    """What is compared, by its name: how the step is made, and of what."""
    config = load_preset(preset)
    full = dataclasses.replace(config, model=dataclasses.replace(config.model, q_rank=0))
    plain_form = RecordStep if preset.partition("+")[0] == "record-0427" else PlainStep
    found: dict[str, tuple[type[Step], RunConfig]] = {PLAIN: (plain_form, full), FULL: (OurStep, full)}
    if config.model.q_rank:
        found[f"pargolf, q_rank {config.model.q_rank}"] = OurStep, config
    return found


def take_turns(
    steps: dict[str, tuple[type[Step], RunConfig]],
    dtype: torch.dtype,
    rows: int,
    turns: int,
    clock: Clock,
    eager: bool,
) -> dict[str, list[tuple[float, float, int | None]]]:
    """Loss, seconds and bytes of each turn of each form; the first turn compiles."""
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name, (form, its) in steps.items():
        pipes[name], end = spawn.Pipe()
        spawn.Process(target=serve, args=(end, form, its, dtype, rows, clock, eager), daemon=True).start()
        end.close()  # or nobody would notice its process's end
    found: dict[str, list[tuple[float, float, int | None]]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name in sorted(steps, reverse=turn % 2 == 1):  # nobody always follows the same one
            pipes[name].send(True)
            found[name].append(answer(name, pipes[name]))
    for pipe in pipes.values():
        pipe.send(False)
    return found


def measure(
    preset: str,
    dtype: Literal["bfloat16", "float32"],
    rows: int,
    turns: int,
    clock: Clock,
    eager: bool,
) -> Figures:
    """Of each form: ms, tokens/s, ratios to the plain form and to full queries, share of the multiply's peak,
    peak memory (bytes, None on a CPU), and the losses of the first two turns."""
    device = torch.device(machine.resolve_device("auto"))
    top = peak_flops(getattr(torch, dtype), device)
    steps = forms(preset)
    found = take_turns(steps, getattr(torch, dtype), rows, turns, clock, eager)
    times = {name: [seconds for _, seconds, _ in made[1:]] for name, made in found.items()}
    length = steps[FULL][1].model.seq_len
    measured = []
    for name, (_, its) in steps.items():
        median = statistics.median(times[name])
        measured.append({
            "form": name,
            "ms": spread([1e3 * seconds for seconds in times[name]]),
            "tokens_per_second": rows * length / median,
            "times_plain": times_faster(times[PLAIN], times[name]),
            "times_full_q": times_faster(times[FULL], times[name]),
            "share_of_peak": model_flops(its) * rows * length / median / top,
            "peak_bytes": found[name][-1][2],
            "losses": [loss for loss, _, _ in found[name][:2]],
        })  # fmt: skip
    title = (
        f"{preset}: {rows} x {length} tokens, {dtype}, {processor(device)},"
        f" median of {turns} by the clock of the {clock}; matrix multiply {top / 1e9:,.0f} GFLOP/s"
    )
    return {"title": title, "multiply_flops": top, "forms": measured}


def times_faster(slow: Sequence[float], fast: Sequence[float]) -> Figures | None:
    """Ratio of what was timed in the same turn (see `spread`); None of a form to itself."""
    return None if slow is fast else spread([a / b for a, b in zip(slow, fast, strict=True)])


def in_rows(figures: Figures) -> Rows:
    """One row a form."""
    columns = ", ms, tokens/s, times plain, times full q, of peak, peak GB, loss (step 2), next turn"
    rows = [columns.split(", ")]
    for form in figures["forms"]:
        ratios = (form["times_plain"], form["times_full_q"])
        peak = form["peak_bytes"]
        rows.append([
            form["form"], in_words(form["ms"], 1), f"{form['tokens_per_second']:,.0f}",
            *(in_words(ratio, 3) if ratio else "1" for ratio in ratios),
            f"{form['share_of_peak']:.0%}", f"{peak / 1e9:.1f}" if peak else "",
            *(f"{loss:.4f}" for loss in form["losses"]),
        ])  # fmt: skip
    return rows


def main(
    preset: tyro.conf.Positional[str] = "lowrank-q192",
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    rows: int = 8,
    turns: int = 15,
    clock: Clock = "wall",
    eager: bool = False,
    figures: Path | None = None,
) -> None:
    """Print what `measure` finds, and write it to the file `figures`.

    From 6 turns on the intervals are known. `eager`: see `compile_unless`.
    """
    found = measure(preset, dtype, rows, turns, clock, eager)
    hand_on(found, in_rows(found), figures)


if __name__ == "__main__":
    tyro.cli(main)
