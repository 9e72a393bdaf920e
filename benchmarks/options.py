"""What each option of model and training costs in a step, in ms: python benchmarks/options.py.

Each row makes one change to the preset and times forward, backward and optimizer of one micro-batch, compiled
as in training, on random tokens in documents of about 200. Preset and changed preset take turns; differences
and ratios are medians over the pairs, with 95 % intervals. One process: run nothing else meanwhile. What
changes a schedule or the start alone costs nothing, and shows how far the others can be believed. On a GPU:
not yet run.
"""

import platform
import re
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from figures import in_words, spread
from rich.table import Table

from pargolf.config.presets import load_preset, overlay_names
from pargolf.config.schema import RunConfig
from pargolf.kernels import native
from pargolf.model.gpt import GPT
from pargolf.optim.averaging import average_of
from pargolf.optim.groups import Optimizers
from pargolf.study.ablate import Change, read_axis
from pargolf.system import machine
from pargolf.system.console import console
from pargolf.system.errors import UserError
from pargolf.train.qat import quantized

DOCUMENT = 200  # tokens, on average
# Beside all overlays: what `small` has is taken out, and partial RoPE leaves its heads of 16 something.
OTHERS = ("train.ema_decay=0", "optim.grad_clip=0", "+partial-rope+model.rope_dims=4")


@dataclass
class Args:
    """Time changes of a preset against the preset."""

    preset: str = "full-q+small"
    vary: tuple[str, ...] = ()
    """Changes as in `ablate --vary`; default: all overlays that fit the preset and change its training."""
    rows: int = 0
    """Rows of seq_len in the batch; 0: a micro-batch of the preset."""
    pairs: int = 20
    """Timed pairs of steps, after three untimed ones."""
    dtype: str = "bfloat16"
    threads: int = 0
    """0: PyTorch's choice."""


def main(args: Args) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    config = load_preset(args.preset)
    c, t = config.model, config.train
    rows = args.rows or t.batch_tokens // t.micro_batches // c.seq_len
    table = Table(title=f"{args.preset}, {rows} x {c.seq_len} tokens, {args.dtype}, {processor()}")
    for column in ("change", "parameters", "preset ms", "with it ms", "more ms", "ratio"):
        table.add_column(column, justify="left" if column == "change" else "right")
    table.add_row("none", f"{Step(config, rows, args.dtype).parameters:,}")
    for change in changes(args.vary):
        try:
            changed = change.of(config)
        except UserError as error:
            console.print(f"left out: {error}", highlight=False)
            continue
        if (changed.model, changed.train, changed.optim) == (c, t, config.optim):
            console.print(f"left out: {change.name} changes nothing of training", highlight=False)
            continue
        torch._dynamo.reset()  # to compare a layer's code with that of one of other buffers can fail
        base, other = Step(config, rows, args.dtype), Step(changed, rows, args.dtype)
        times = [(1e3 * base(), 1e3 * other()) for _ in range(args.pairs + 3)][3:]
        a, b = (statistics.median(column) for column in zip(*times, strict=True))
        table.add_row(
            change.name, f"{other.parameters:,}", f"{a:.1f}", f"{b:.1f}",
            in_words(spread([y - x for x, y in times]), 1), in_words(spread([y / x for x, y in times]), 3),
        )  # fmt: skip
    console.width = 140  # a file has none
    console.print(table)


def changes(vary: Sequence[str]) -> list[Change]:
    """What the rows change."""
    texts = vary or [*OTHERS, *(f"+{name}" for name in overlay_names() if name != "small")]
    return [change for text in texts for change in read_axis(text) if change != Change()]


def processor() -> str:
    """This machine in words."""
    cpus = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpus.read_text()) if cpus.exists() else None
    name = found[1] if found else platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({capability}), {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


class Step:
    """One training step of a configuration; calling it returns its seconds."""

    def __init__(self, config: RunConfig, rows: int, its_dtype: str):
        machine.keep_memory()
        c, dtype = config.model, getattr(torch, its_dtype)
        self.model = GPT(c, dtype, seed=0)
        self.optimizers = Optimizers(self.model, config.optim, dtype, average_of(self.model, config.train))
        native.install(self.model, self.optimizers)
        self.model.compile_regions()
        # Both models share the code of a layer: each compiles it anew, and at the limit would go without.
        limits = torch._dynamo.config
        limits.recompile_limit = limits.accumulated_recompile_limit = 100_000
        limits.fail_on_recompile_limit_hit = True
        shape = rows, c.seq_len + 1
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(c.vocab_size, shape, generator=generator)
        begins = torch.rand(shape, generator=generator) < 1 / DOCUMENT
        self.tokens = tokens.masked_fill(begins, c.bos_id)
        self.config, self.rounds = config, config.train.qat_share > 0
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def __call__(self) -> float:
        start, ahead = time.perf_counter(), self.optimizers.ahead
        with ahead.shifted(self.config.optim.ema_nesterov) if ahead is not None else nullcontext():
            with quantized(self.model, self.config.export) if self.rounds else nullcontext():
                self.model(self.tokens[:, :-1], self.tokens[:, 1:]).backward()
            self.optimizers.step(1.0, 0.95)
        return time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(Args))
