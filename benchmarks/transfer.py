"""Do cheap runs order techniques as the records did? Effects of screens beside published gains.

    python benchmarks/transfer.py runs/screen-model runs/screen-training --repeats runs/alone

Published gains are those measured alone, or of pairs split evenly, by the challenge's records and threads:
bits per byte after 10 minutes on 8 H100s unless the source says otherwise. Rank correlation is Spearman's;
its p by permutations; its interval by drawing each effect anew from its own standard error.
"""

from pathlib import Path

import numpy as np
import tyro
from rich.table import Table
from scipy import stats

from pargolf.study.screen import Effect, read_screen
from pargolf.system.console import console

HALF_OF_PAIR = -0.00115
# Change as a screen names it -> (bits per byte, where it is published).
PUBLISHED = {
    "+smear": (-0.0017, "thread 1851 against the log of 04-23, 2 seeds"),
    "+xsa": (-0.0020, "03-20, last 3 layers"),
    "+partial-rope": (HALF_OF_PAIR, "03-21, half of -0.0023 with LN scale"),
    "+partial-rope,model.rope_dims=4": (HALF_OF_PAIR, "the same"),
    "+ln-scale": (HALF_OF_PAIR, "03-21, half of -0.0023 with partial RoPE"),
    "model.q_gain=3.0": (-0.0024, "thread 1418, one GPU, short"),
    "+head-gate": (-0.0017, "04-19, dense; sparse is no worse by 04-23"),
    "+value-residual": (-0.0151, "thread 413, 9 layers, 1,000 steps"),
    "+routed": (-0.0022, "03-31, 1 seed"),
    "+lanes": (-0.0006, "04-08"),
    "+parallel": (0.0, "04-06: barely moved before quantization"),
    "+loop": (-0.0030, "04-03"),
    "+leaky-relu": (-0.0021, "03-23"),
    "+mlp-4x": (-0.0080, "03-24, ternary"),
    "+muoneq": (-0.0010, "04-03"),
    "+polar-express": (0.0003, "threads 1516 and 1831"),
    "train.ema_decay=0.0": (0.0027, "03-20, -0.0047 with XSA less XSA's -0.0020"),
    "+documents-apart": (-0.0006, "04-10, about 0.001 nats"),
}
DRAWS = 10_000


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's."""
    return float(stats.spearmanr(x, y).statistic)


def main(screens: tyro.conf.Positional[tuple[Path, ...]], repeats: Path | None = None) -> None:
    """Print effects and published gains, largest published gain first, and their rank correlation.

    `repeats` is the folder of runs whose spread is taken for chance (see `read_screen`).
    """
    found: dict[str, Effect] = {}
    for folder in screens:
        found |= {effect.change: effect for effect in read_screen(folder, repeats).effects}
    names = sorted(PUBLISHED.keys() & found.keys(), key=lambda name: PUBLISHED[name][0])
    table = Table()
    for column in ("change", "published", "here", "95 %", "source"):
        table.add_column(column)
    for name in names:
        effect = found[name]
        interval = f"{effect.low:+.4f} to {effect.high:+.4f}"
        table.add_row(name, f"{PUBLISHED[name][0]:+.4f}", f"{effect.bpb:+.4f}", interval, PUBLISHED[name][1])
    console.print(table)
    published = np.array([PUBLISHED[name][0] for name in names])
    here = np.array([found[name].bpb for name in names])
    half = np.array([(found[name].high - found[name].low) / 2 for name in names])
    rng = np.random.default_rng(0)
    rho = correlation(published, here)
    shuffled = [correlation(published, rng.permutation(here)) for _ in range(DRAWS)]
    redrawn = [correlation(published, rng.normal(here, half / 2)) for _ in range(DRAWS)]
    low, high = np.quantile(redrawn, [0.025, 0.975])
    same = int(np.sum(np.sign(published) == np.sign(here)))
    print(f"{same} of {len(names)} have the same sign")
    print(f"rank correlation {rho:+.2f}, {low:+.2f} to {high:+.2f} by the effects' own noise")
    print(f"p, one-sided: {np.mean(np.array(shuffled) >= rho):.3f}")


if __name__ == "__main__":
    tyro.cli(main)
