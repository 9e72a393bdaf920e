"""A training step on paper: what each part computes, moves and sends, and what bounds it on H100s.

    python benchmarks/roofline.py

Nothing is run; the tables are those of docs/roofline.md, in Markdown.
"""

from dataclasses import replace

from rich import box
from rich.table import Table

from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.plan.forecast import h100_step_seconds
from pargolf.plan.roofline import H100, Work, least_seconds, model_flops, step_cost
from pargolf.system.console import console

# Seconds a step on 8 H100 SXM, as published (challenge pull request #215, and the challenge's baseline).
PUBLISHED = {"lowrank-q192": 0.0776, "full-q": 0.108, "baseline": 0.0435}
# What well-made kernels get of the peaks: multiplies with an inner size of 512, streaming, NCCL rings.
REALISTIC = replace(H100, flops=0.6 * H100.flops, bandwidth=0.8 * H100.bandwidth, link=0.75 * H100.link)


def parts(name: str, config: RunConfig, ranks: int) -> Table:
    """One row a part of the step, as each of `ranks` GPUs does it."""
    rows = step_cost(config, ranks)
    table = Table(title=f"{name} on {ranks} x {H100.name}, each GPU", title_justify="left", box=box.MARKDOWN)
    for column in ("part", "TFLOP", "GB moved", "MB sent", "ms at peak", "bound by", "ms, realistic"):
        table.add_column(column, justify="left" if column in ("part", "bound by") else "right")
    for part, work in rows.items():
        table.add_row(
            part,
            f"{work.flops / 1e12:.3f}",
            f"{work.bytes / 1e9:.2f}",
            f"{work.exchanged / 1e6:.0f}",
            f"{1000 * work.seconds(H100):.2f}",
            bound(work),
            f"{1000 * work.seconds(REALISTIC):.2f}",
        )
    least, realistic = (least_seconds(config, machine, ranks) for machine in (H100, REALISTIC))
    table.add_row("sum", *sums(rows), f"{1000 * least:.2f}", "", f"{1000 * realistic:.2f}")
    return table


def bound(work: Work) -> str:
    """Which of the three rates a part waits for, at the peaks."""
    times = {
        "arithmetic": work.flops / H100.flops,
        "memory": work.bytes / H100.bandwidth,
        "link": work.exchanged / H100.link,
    }
    return max(times, key=times.__getitem__)


def sums(rows: dict[str, Work]) -> list[str]:
    works = rows.values()
    return [
        f"{sum(work.flops for work in works) / 1e12:.3f}",
        f"{sum(work.bytes for work in works) / 1e9:.2f}",
        f"{sum(work.exchanged for work in works) / 1e6:.0f}",
    ]


def check() -> Table:
    """The published step times as shares of the peaks, and what `pargolf plan` predicts for pargolf."""
    table = Table(title=f"published, 8 x {H100.name}", title_justify="left", box=box.MARKDOWN)
    for column in ("preset", "published ms", "MFU", "roofline ms", "share of it", "pargolf, predicted ms"):
        table.add_column(column, justify="left" if column == "preset" else "right")
    for name, seconds in PUBLISHED.items():
        config = load_preset(name)
        least, predicted = least_seconds(config, H100, 8), h100_step_seconds(config, 8)
        mfu = model_flops(config) * config.train.batch_tokens / 8 / seconds / H100.flops
        table.add_row(
            name,
            f"{1000 * seconds:.1f}",
            f"{mfu:.1%}",
            f"{1000 * least:.1f}",
            f"{least / seconds:.1%}",
            f"{1000 * predicted:.1f}",
        )
    return table


def main() -> None:
    console.width = 140  # a file has none
    for ranks in (8, 1):
        for name in ("lowrank-q192", "full-q"):
            console.print(parts(name, load_preset(name), ranks))
    console.print(check())


if __name__ == "__main__":
    main()
