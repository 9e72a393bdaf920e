"""Screens: which of many changes help, from runs that each make about half of them.

Where a grid of 25 changes is 2^25 runs, and each alone over the base spends its runs on one change, every run
of a screen informs on all (Plackett and Burman, Biometrika 33:305, 1946). A run and its mirror, which
makes the other half of the changes, share a seed; so folded over, no effect is mixed up with how well
two others go together (Box and Wilson, J. R. Statist. Soc. B 13:1, 1951).
"""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import linalg, stats

from pargolf.config.schema import RunConfig
from pargolf.study.ablate import Change, Variation, begin_study, describe_study, finish_runs, job
from pargolf.study.compare import group_records
from pargolf.study.records import RunRecord, read_json, read_record, read_records
from pargolf.study.statistics import CONFIDENCE, holm
from pargolf.system.errors import UserError, require
from pargolf.system.files import write_json

# The alternative chosen on each axis, by its place.
Choices = tuple[int, ...]


@dataclass(frozen=True)
class Effect:
    """An alternative against the first of its axis, beside about half of all others; negative is better."""

    change: str
    runs: int
    """That make the change."""
    bpb: float
    low: float
    """95 % confidence interval of `bpb`, two-sided."""
    high: float
    p: float
    """Two-sided, of no effect."""
    p_holm: float | None
    """`p`, corrected for all effects of the screen."""
    bytes_total: float | None
    """Effect on code and model together; None where a run does not tell."""
    step_ms: float | None
    """Effect on the milliseconds a step; None likewise."""


@dataclass(frozen=True)
class Screen:
    """The effects in the order of the axes, and how far one can trust them."""

    effects: tuple[Effect, ...]
    runs: int
    mean: float
    """val_bpb over all runs."""
    std: float
    """What is taken for chance, val_bpb: the spread of repeated runs; without these, what the effects leave
    unexplained, seeds and changes that go together well or badly."""
    df: int


def choices(alternatives: Sequence[int], seeds: int) -> list[Choices]:
    """The mixtures of a screen, two a seed: rows of a Hadamard matrix, each followed by its mirror.

    `alternatives` counts those of each axis, the first included. On each axis half of the mixtures choose the
    first alternative, and the others share the other half. The first two choose of nothing the first, and of
    everything. Raises UserError if `seeds` is no power of two above the number of axes.
    """
    if any(count < 2 for count in alternatives):
        raise UserError("a screen compares alternatives; write each --vary with two or more, as base,+xsa")
    if seeds <= len(alternatives) or seeds & (seeds - 1):
        need = 1 << len(alternatives).bit_length()
        raise UserError(
            f"a screen of {len(alternatives)} --vary needs a power of two as --seeds, {need} or more,"
            f" for two runs a seed; {seeds} is none"
        )
    changed = linalg.hadamard(seeds)[:, 1 : len(alternatives) + 1] > 0
    mixtures = np.zeros((2 * seeds, len(alternatives)), int)
    mixtures[0::2], mixtures[1::2] = changed, ~changed
    for axis, count in enumerate(alternatives):
        rows = np.flatnonzero(mixtures[:, axis])
        dealt = [1 + index % (count - 1) for index in range(len(rows))]
        # A fixed order that has nothing to do with the other axes; a longer screen deals anew.
        random.Random(axis).shuffle(dealt)
        mixtures[rows, axis] = dealt
    return [tuple(row) for row in mixtures.tolist()]


def screen(
    base: RunConfig, folder: Path, axes: Sequence[list[Change]], seeds: int, at_once: int = 1
) -> Screen:
    """Make every run of the screen that is not finished yet and estimate the effects.

    Raises UserError if `choices` does, if a mixture's settings do not fit together, and what
    `finish_runs` raises.
    """
    base = begin_study(base, folder, seeds)
    mixtures = choices([len(axis) for axis in axes], seeds)
    todo, jobs = [], []
    for number, mixture in enumerate(mixtures):
        change = sum((axis[chosen] for axis, chosen in zip(axes, mixture, strict=True)), Change())
        variation = Variation(change, change.of(base))
        todo.append(variation)
        jobs.append(job(variation, base.train.seed + number // 2, folder))
    study = describe_study(base, todo, [base.train.seed + index for index in range(seeds)])
    study["axes"] = [[change.name for change in axis] for axis in axes]
    study["choices"] = {job.folder.name: mixture for job, mixture in zip(jobs, mixtures, strict=True)}
    finish_runs(folder, study, jobs, at_once)
    found = read_screen(folder)
    write_json(folder / "comparison.json", dataclasses.asdict(found))
    return found


def is_screen(folder: Path) -> bool:
    """Whether the folder is a screen's, finished or not."""
    return (folder / "study.json").exists() and "axes" in read_json(folder / "study.json")


def read_screen(folder: Path, repeats: Path | None = None) -> Screen:
    """The effects that the finished runs of a screen show.

    `repeats` is the folder of a study some of whose runs differ in their seed alone: their spread is then
    taken for chance. Raises UserError if the runs, or repeats, are too few to tell.
    """
    study = read_json(folder / "study.json")
    try:
        names, mixtures = study["axes"], {run: tuple(made) for run, made in study["choices"].items()}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{folder} is no screen; make one with `pargolf ablate --screen`") from None
    finished = {run: made for run, made in mixtures.items() if (folder / run / "result.json").exists()}
    chance = None if repeats is None else spread(read_records([repeats]))
    records = [read_record(folder / run) for run in finished]
    return estimate(names, list(finished.values()), records, chance)


def spread(records: Sequence[RunRecord]) -> tuple[float, int]:
    """Standard deviation of val_bpb within groups of runs that differ in their seed alone, and its degrees of
    freedom. Raises UserError if no two runs do."""
    groups = [[record.val_bpb for record in group.records] for group in group_records(records)]
    df = sum(len(scores) - 1 for scores in groups)
    require(df > 0, "no two of the repeated runs differ in their seed alone")
    squares = sum(float(np.var(scores)) * len(scores) for scores in groups)
    return float(np.sqrt(squares / df)), df


def estimate(
    names: Sequence[Sequence[str]],
    mixtures: Sequence[Choices],
    records: Sequence[RunRecord],
    chance: tuple[float, int] | None = None,
) -> Screen:
    """Effects by least squares: one for each alternative but the first of its axis, a run for each mixture.

    `chance` is the standard deviation of a run and its degrees of freedom, where repeated runs tell them.
    Raises UserError if the runs are too few to tell the effects apart, or were scored on different texts.
    """
    if len({record.val_bytes for record in records}) > 1:
        raise UserError("the runs of the screen were not all scored on the same text")
    wanted = [(axis, place) for axis, axis_names in enumerate(names) for place in range(1, len(axis_names))]
    made = np.array([[m[axis] == place for axis, place in wanted] for m in mixtures], dtype=float)
    made = made.reshape(len(mixtures), len(wanted))
    design = np.column_stack([np.ones(len(mixtures)), made])
    df = len(mixtures) - design.shape[1]
    if df < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        raise UserError(
            f"{len(mixtures)} finished runs cannot tell {len(wanted)} effects apart; finish the screen"
        )
    scores = np.array([record.val_bpb for record in records])
    solve = np.linalg.pinv(design)
    bpb = solve @ scores
    std = float(np.sqrt(np.sum((scores - design @ bpb) ** 2) / df))
    if chance is not None:
        std, df = chance
    errors = std * np.sqrt(np.sum(solve**2, axis=1))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, df) * errors
    p = 2 * stats.t.sf(np.abs(bpb) / errors, df)
    sizes = _coefficients(solve, [record.bytes_total for record in records])
    times = _coefficients(solve, [record.step_ms for record in records])
    corrected = holm([float(value) for value in p[1:]])
    effects = tuple(
        Effect(
            change=names[axis][place],
            runs=int(design[:, k].sum()),
            bpb=float(bpb[k]),
            low=float(bpb[k] - half[k]),
            high=float(bpb[k] + half[k]),
            p=float(p[k]),
            p_holm=corrected[k - 1],
            bytes_total=None if sizes is None else float(sizes[k]),
            step_ms=None if times is None else float(times[k]),
        )
        for k, (axis, place) in enumerate(wanted, 1)
    )
    return Screen(effects, len(records), float(scores.mean()), std, df)


def _coefficients(solve: np.ndarray, values: Sequence[float | None]) -> np.ndarray | None:
    known = [value for value in values if value is not None]
    return solve @ np.array(known) if len(known) == len(values) else None
