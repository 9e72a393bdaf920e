"""Where a run's validation loss will end, from the first part of its curve and what is known of the rest.

Over the run, with S the sum of the learning rate's factors so far (in steps) and A what its decay took off
(each loss of rate counts from its step on, fading with DELAY),

    ln loss = level + v (S / 7000)^-0.7 - w (1 + 0.5 z)^2 (A / 7000)^0.7,   z = 1000 * muon_lr * weight decay.

Source of the form: Tissue et al. 2024, "Scaling Law with Learning Rate Annealing". Level, v and w are normal
variables, whose mean and spread over runs are known (`SHAPE`); the points of the curve make them sharper.
Runs that saw the same batches share the noise of their training losses: a finished one beside takes it off.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pargolf.config.schema import TrainConfig
from pargolf.config.settings import Settings
from pargolf.optim.schedule import lr_scale
from pargolf.run.folder import Run, read_lines
from pargolf.study.records import read_json, read_settings
from pargolf.system.errors import UserError, require

SCALE, DELAY, POWER = 7000.0, 1000.0, 0.7  # steps, steps, of both terms
TRAIN_NOISE, VAL_NOISE, SHARED_NOISE = 0.035, 0.002, 0.01  # in ln loss: a batch's, a score's, a batch's known
WARMED_UP = 0.1  # share of a run before which its curve has another form
MISFIT = 0.008  # spread of ln loss that the form leaves at SCALE steps; with it 9 of 10 intervals hold
Z90 = 1.645  # half of a 90 % interval, in spreads
ALIKE = 0.35  # spread of two curves' difference, in spreads of one: below, they saw the same batches


@dataclass(frozen=True)
class Shape:
    """How runs' curves are formed: means and covariance of v, w and train loss less val loss."""

    v: tuple[float, float]
    """Constant, and what a unit of z adds."""
    w: float
    offset: float
    covariance: tuple[tuple[float, ...], ...]


# Fitted to 49 published curves, a record counting once: `benchmarks/predict.py curves.jsonl`.
SHAPE = Shape(
    v=(0.0408, -0.0212),
    w=0.147,
    offset=0.0015,
    covariance=((9.68e-5, -2.95e-4, 1.46e-5), (-2.95e-4, 1.72e-3, -5.97e-5), (1.46e-5, -5.97e-5, 1.27e-5)),
)


@dataclass(frozen=True)
class Curve:
    """A run's losses by step, and what is known of the whole run."""

    name: str
    train: dict[int, float]
    """Nats a token, of one batch each."""
    val: dict[int, float]
    """Nats a token, of the validation rows; the start left out."""
    total: int
    """Steps of the whole run, known or expected."""
    schedule: TrainConfig
    z: float = 0.0
    """1000 times Muon's learning rate times its weight decay."""
    batches: tuple[int | None, int | None] = (None, None)
    """Tokens of a batch, and the seed where it orders the batches; None where unknown or of no matter."""

    def until(self, share: float) -> "Curve":
        """Its first part alone."""
        last = share * self.total
        return replace(
            self,
            train={step: loss for step, loss in self.train.items() if step <= last},
            val={step: loss for step, loss in self.val.items() if step <= last},
        )


@dataclass(frozen=True)
class Prediction:
    """The end of a run's curve; losses are nats a token."""

    name: str
    step: int
    """The last that the prediction knows."""
    total: int
    val_loss: float
    low: float
    """9 of 10 runs end between low and high."""
    high: float
    beside: int
    """Finished runs that saw the same batches."""
    truth: float | None
    """Where the run ended, if it has."""


@dataclass(frozen=True)
class Fit:
    """Level, v, w and offset of one curve, their covariance, and what its training losses leave."""

    values: np.ndarray
    covariance: np.ndarray
    left: dict[int, float]


def read_curve(folder: Path, warmdown: float = 0.0, weight_decay: float | None = None) -> Curve:
    """The curve of a run, our own or an imported one.

    `warmdown` (steps, or a share of the run up to 1) and `weight_decay` stand in for what its settings do
    not say. Raises UserError if it has no curve, or if its length or its warm-down is unknown.
    """
    run = Run(folder)
    lines, (_, settings) = read_lines(run.metrics), read_settings(run)
    train, val = (
        {line["step"]: float(line[name]) for line in lines if line.get(name, 0) > 0 < line["step"]}
        for name in ("train_loss", "val_loss")
    )
    seed = settings.get("train.seed") if settings.get("data.order") == "shuffle" else None
    settings = {name: value for name, value in settings.items() if _is_amount(value)}  # a log's may be words
    require(bool(train or val), f"{folder} has no loss curve: no losses in its metrics.jsonl")
    total = _total(run, settings, lines[-1]["step"])
    decay = settings.get("optim.muon_weight_decay") if weight_decay is None else weight_decay
    return Curve(
        name=run.name,
        train=train,
        val=val,
        total=total,
        schedule=_schedule(folder, settings, total, warmdown),
        z=min(10.0, 1000 * settings.get("optim.muon_lr", 0.02) * (decay or 0.0)),
        batches=(settings.get("train.batch_tokens"), seed),
    )


def _is_amount(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf  # type: ignore[operator]


def _total(run: Run, settings: Settings, last: int) -> int:
    """Steps of the whole run: of a finished one its last, else by iterations and the clock."""
    if run.result.exists():
        steps = read_json(run.result).get("steps")
        return max(last, int(steps)) if steps and _is_amount(steps) else last
    iterations = settings.get("train.iterations")
    if iterations is None:
        raise UserError(f"{run.folder} does not say how many steps it will have: no train.iterations")
    seconds = settings.get("train.max_seconds", 0.0) - settings.get("train.reserve_seconds", 0.0)
    timing = read_lines(run.timing)
    if seconds > 0 and len(timing) > 1 and timing[-1]["step"] > timing[0]["step"]:
        first, now = timing[len(timing) // 2 - 1], timing[-1]
        pace = (now["seconds"] - first["seconds"]) / (now["step"] - first["step"])
        if pace > 0:
            iterations = min(iterations, now["step"] + max(0.0, seconds - now["seconds"]) / pace)
    return max(last, int(iterations))


def _schedule(folder: Path, settings: Settings, total: int, warmdown: float) -> TrainConfig:
    """Settings of the learning rate over `total` steps; by the clock its decay takes about as many."""
    names = ("warmdown_steps", "warmdown_fraction", "warmdown_power", "min_lr")
    known: dict[str, Any] = {n: settings[f"train.{n}"] for n in names if f"train.{n}" in settings}
    if warmdown:
        known |= {"warmdown_steps": int(warmdown), "warmdown_fraction": warmdown if warmdown <= 1 else 0.0}
    if not known.keys() & {"warmdown_steps", "warmdown_fraction"}:
        raise UserError(
            f"{folder} does not name its warm-down; say it: --warmdown 3500 (steps) or 0.75 (share)"
        )
    return TrainConfig(iterations=total, max_seconds=0.0, **known)


def predict(curve: Curve, at: float = 1.0, beside: Sequence[Curve] = (), shape: Shape = SHAPE) -> Prediction:
    """The last val_loss of a run from the first `at` of its steps, helped by finished runs `beside`.

    Of those only runs that saw the same batches help. Raises UserError on too few points.
    """
    require(0 < at <= 1, f"--at must be a share of the run above 0 and up to 1, is {at}")
    seen = curve.until(at)
    shared = [other for other in beside if saw_the_same(seen, other)]
    fits = [fit(other, shape) for other in shared]
    found = fit(seen, shape, fits)
    end = _terms(seen, np.array([seen.total]))[0] * [1, 1, 1, 0]
    misfit = MISFIT * math.sqrt(max(1.0, SCALE / seen.total))  # shorter runs are less like those of SHAPE
    mean, spread = float(end @ found.values), math.sqrt(end @ found.covariance @ end + misfit**2)
    low, high = (math.exp(mean + side * Z90 * spread) for side in (-1, 1))
    last = max([*seen.train, *seen.val])
    truth = curve.val.get(curve.total)
    return Prediction(curve.name, last, curve.total, math.exp(mean), low, high, len(shared), truth)


def saw_the_same(curve: Curve, other: Curve) -> bool:
    """Whether the noise of two runs' training losses shows that they were trained on the same batches."""
    if any(a != b for a, b in zip(curve.batches, other.batches, strict=True) if a and b):
        return False
    both = np.array(sorted(curve.train.keys() & other.train.keys()))
    if len(both) and abs(math.log(curve.train[both[0]] / other.train[both[0]])) > 0.05:  # other vocabularies
        return False
    both = both[both >= min(100, WARMED_UP * curve.total)] if len(both) else both
    if len(both) < 3:
        return False
    here = np.log([curve.train[step] for step in both])
    there = np.log([other.train[step] for step in both])
    trend = np.stack([np.ones(len(both)), both**-POWER], axis=1)
    noise = here - trend @ np.linalg.lstsq(trend, here, rcond=None)[0]
    return float(np.std(here - there)) < ALIKE * float(np.std(noise))


def fit(curve: Curve, shape: Shape = SHAPE, beside: Sequence[Fit] = ()) -> Fit:
    """The curve's own level, v, w and offset; `beside` are fits of runs that saw the same batches."""
    precision, weighted, terms, steps, y = evidence(curve, beside)
    mean = np.array([shape.v[0] + shape.v[1] * curve.z, shape.w, shape.offset])
    spread = np.array(shape.covariance)
    if beside:  # runs alike: their form, and little room beside it
        mean = np.mean([other.values[1:] for other in beside], axis=0)
        spread = spread * 0.1
        spread[2, :], spread[:, 2] = 0, 0
        spread[2, 2] = VAL_NOISE**2
    prior = np.linalg.inv(spread)
    precision[1:, 1:] += prior
    weighted[1:] += prior @ mean
    precision[0, 0] += 1e-4  # the level is free
    covariance = np.linalg.inv(precision)
    values = covariance @ weighted
    left = y - terms @ values
    return Fit(values, covariance, dict(zip(steps.tolist(), left[: len(steps)].tolist(), strict=True)))


def evidence(curve: Curve, beside: Sequence[Fit] = ()) -> tuple[np.ndarray, ...]:
    """What the points say: precision and precision times mean of the values; terms, training steps, y."""
    begin = min(max(100, WARMED_UP * curve.total), 0.3 * curve.total)
    steps = np.array([step for step in curve.train if step >= begin], dtype=int)
    scored = np.array([step for step in curve.val if step >= begin], dtype=int)
    if len(steps) + len(scored) < 2:
        raise UserError(
            f"{curve.name} has too few points to predict from: fewer than 2 after step {begin:.0f}"
        )
    y = np.log([curve.train[step] for step in steps.tolist()] + [curve.val[step] for step in scored.tolist()])
    noise = np.r_[np.full(len(steps), TRAIN_NOISE), np.full(len(scored), VAL_NOISE)]
    for n, step in enumerate(steps.tolist()):
        if known := [other.left[step] for other in beside if step in other.left]:
            y[n] -= np.mean(known)
            noise[n] = SHARED_NOISE
    terms = _terms(curve, np.r_[steps, scored])
    terms[len(steps) :, 3] = 0
    weights = terms / noise[:, None] ** 2
    return weights.T @ terms, weights.T @ y, terms, steps, y


def _terms(curve: Curve, steps: np.ndarray) -> np.ndarray:
    """(N, 4): what level, v, w and the offset are multiplied by after each of the `steps`."""
    grid = np.linspace(0, curve.total, 401)
    rate = np.array([lr_scale(int(step), 0.0, curve.schedule) for step in grid])
    width = grid[1]
    summed = np.r_[0, np.cumsum((rate[1:] + rate[:-1]) / 2 * width)]
    momentum, area = 0.0, [0.0]
    for fall in -np.diff(rate):
        momentum = momentum * math.exp(-width / DELAY) + fall
        area.append(area[-1] + momentum * width)
    falls = np.maximum(np.interp(steps, grid, area), 0)
    gain = (1 + 0.5 * curve.z) ** 2 * (falls / SCALE) ** POWER
    sums = np.maximum(np.interp(steps, grid, summed), 1)
    ones = np.ones(len(steps))
    return np.stack([ones, (sums / SCALE) ** -POWER - 1, -gain, ones], axis=1)
