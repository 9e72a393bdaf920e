"""Step time of overlays against the preset below them: python benchmarks/options.py [--preset demo].

Each row lays an overlay over the preset and times forward, backward and optimizer of one micro-batch,
compiled as in training, on random tokens in documents of about 200. Preset and overlay take turns; the
ratio is the median over the pairs, with its 95 % interval. One process: run nothing else meanwhile.
On a GPU: not yet run.
"""

import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import tyro
from rich.table import Table
from scipy import stats

from pargolf.config.presets import add_overlays, load_preset, overlay_names, validated
from pargolf.config.schema import RunConfig
from pargolf.kernels import native
from pargolf.model.gpt import GPT
from pargolf.optim.averaging import average_of
from pargolf.optim.groups import Optimizers
from pargolf.system import machine
from pargolf.system.console import console
from pargolf.system.errors import UserError
from pargolf.train.qat import quantized

DOCUMENT = 200  # tokens, on average


@dataclass
class Args:
    """Time overlays against the preset without them."""

    preset: str = "demo"
    overlays: tuple[str, ...] = ()
    """Names of overlays; default: all that fit the preset and leave its shape."""
    rows: int = 8
    """Rows of seq_len in the batch."""
    pairs: int = 20
    """Timed pairs of steps, after three untimed ones."""
    dtype: str = "bfloat16"
    threads: int = 0
    """0: PyTorch's choice."""


def main(args: Args) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    config = load_preset(args.preset)
    plain = Step(config, args)
    table = Table(title=f"{args.preset}, {args.rows} x {config.model.seq_len} tokens, {args.dtype}, CPU")
    for column in ("overlay", "parameters", "plain ms", "with it ms", "ratio", "95 %"):
        table.add_column(column, justify="left" if column == "overlay" else "right")
    table.add_row("none", f"{plain.parameters:,}", "", "", "1", "")
    for name in args.overlays or [name for name in overlay_names() if name != "small"]:
        try:
            other = Step(validated(add_overlays(config, f"+{name}")), args)
        except UserError as error:
            console.print(f"left out: {error}", highlight=False)
            continue
        times = [(plain(), other()) for _ in range(args.pairs + 3)][3:]
        a, b = (statistics.median(column) for column in zip(*times, strict=True))
        ratios = [y / x for x, y in times]
        low, high = stats.quantile_test(ratios, q=1.0, p=0.5).confidence_interval(0.95)
        table.add_row(
            name, f"{other.parameters:,}", f"{1e3 * a:.1f}", f"{1e3 * b:.1f}",
            f"{statistics.median(ratios):.3f}", f"{low:.3f} to {high:.3f}",
        )  # fmt: skip
    console.print(table)


class Step:
    """One training step of a configuration; calling it returns its seconds."""

    def __init__(self, config: RunConfig, args: Args):
        machine.keep_memory()
        c, dtype = config.model, getattr(torch, args.dtype)
        self.model = GPT(c, dtype, seed=0)
        self.optimizers = Optimizers(self.model, config.optim, dtype, average_of(self.model, config.train))
        native.install(self.model, self.optimizers)
        self.model.compile_regions()
        shape = args.rows, c.seq_len + 1
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
