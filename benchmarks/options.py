"""Step time of the model's options against the plain model: python benchmarks/options.py [--preset demo].

Each row builds the preset with one setting changed and times forward, backward and optimizer of
one micro-batch, compiled as in training. Plain and changed model take turns; the ratio is the
median over the pairs. One thread count, one process: run nothing else meanwhile.
"""

import dataclasses
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from rich.table import Table

from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.kernels import native
from pargolf.model.gpt import GPT
from pargolf.optim.groups import Optimizers
from pargolf.system import machine
from pargolf.system.console import console
from pargolf.train.qat import quantized

ROUNDED = "quantization-aware (train.qat_share)"
OPTIONS: dict[str, dict[str, Any]] = {
    "full-rank queries": {"q_rank": 0},
    "content rotation, rank 16": {"rotation_rank": 16},
    "depth attention, softmax": {"depth_attention": "softmax"},
    "depth attention, signed": {"depth_attention": "signed"},
    "low-rank K, V, out, MLP (half)": {
        "k_rank": 0.5, "v_rank": 0.5, "out_rank": 0.5, "fc_rank": 0.5, "proj_rank": 0.5,
    },
    ROUNDED: {},
}  # fmt: skip


@dataclass
class Args:
    """Time each option of the model against the model without it."""

    preset: str = "demo"
    rows: int = 8
    """Rows of seq_len in the batch."""
    pairs: int = 20
    """Timed pairs of steps, after three untimed ones."""
    dtype: str = "float32"


def main(args: Args) -> None:
    config = load_preset(args.preset)
    plain = Step(config, args)
    table = Table(title=f"{args.preset}, {args.rows} x {config.model.seq_len} tokens, {args.dtype}, CPU")
    for column in ("option", "parameters", "plain ms", "with it ms", "ratio", "ratio on a GPU"):
        table.add_column(column, justify="left" if column == "option" else "right")
    table.add_row("none", f"{plain.parameters:,}", "", "", "1", "not yet run")
    for name, changes in OPTIONS.items():
        # A share stands for that part of the rank the matrix has by its shape.
        ranks = {
            key: int(value * (config.model.d_kv if key in ("k_rank", "v_rank") else config.model.d_model))
            for key, value in changes.items()
            if isinstance(value, float)
        }
        model = dataclasses.replace(config.model, **changes | ranks)
        other = Step(dataclasses.replace(config, model=model), args, rounding=name == ROUNDED)
        times = [(plain(), other()) for _ in range(args.pairs + 3)][3:]
        a, b = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(y / x for x, y in times)
        table.add_row(
            name, f"{other.parameters:,}", f"{1e3 * a:.1f}", f"{1e3 * b:.1f}", f"{ratio:.3f}", "not yet run"
        )
    console.print(table)


class Step:
    """One training step of a model; calling it returns its seconds."""

    def __init__(self, config: RunConfig, args: Args, rounding: bool = False):
        machine.keep_memory()
        dtype = getattr(torch, args.dtype)
        self.model = GPT(config.model, dtype, seed=0)
        native.install_attention(self.model)
        self.model.compile_regions()
        self.optimizers = Optimizers(self.model, config.optim, dtype)
        self.tokens = torch.randint(config.model.vocab_size, (args.rows, config.model.seq_len + 1))
        self.config, self.rounding = config, rounding
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def __call__(self) -> float:
        start = time.perf_counter()
        with quantized(self.model, self.config.export) if self.rounding else nullcontext():
            self.model(self.tokens[:, :-1], self.tokens[:, 1:]).backward()
        self.optimizers.step(1.0, 0.95)
        return time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(Args))
