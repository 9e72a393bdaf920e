"""Ends of published training curves, predicted from their first part: python benchmarks/predict.py FILE

FILE has a curve a line: {"log", "settings", "train_loss": [[step, y]], "val": [[step, y, bpb]], "steps"}.
What is fitted across curves is fitted without the record whose curve is predicted.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pargolf.config.schema import TrainConfig
from pargolf.study.predict import SHAPE, Curve, Prediction, Shape, evidence, predict

# What logs do not name: warm-down (steps or share), least learning rate, Muon's weight decay. From names and
# READMEs of the records, or usual in their time; the warm-downs of 10L, Mamba3 and Random_Linear from where
# their whole curves bend.
UNNAMED = {
    "2026-03-18_FP16": (3600, 0, 0),
    "2026-03-19_10L": (1200, 0, 0),
    "2026-03-19_MLP3x": (3000, 0, 0),
    "2026-03-19_Sliding": (1200, 0, 0),
    "2026-03-19_TrainingOpt": (3000, 0, 0),
    "2026-03-19_Warmdown": (3000, 0, 0),
    "2026-03-19_int6": (3000, 0, 0.01),
    "2026-03-20": (3000, 0, 0.04),
    "2026-03-22": (3500, 0, 0.04),
    "2026-03-23": (3500, 0, 0.04),
    "2026-03-25": (4000, 0, 0.04),
    "2026-03-31": (1, 0, 0),
    "2026-04-04": (0.667, 0, 0.09),
    "2026-04-15": (2500, 0, 0),
    "2026-04-29": (0.85, 0.1, 0.095),
    "2026-04-30": (1200, 0, 0),
}


def read(line: str) -> tuple[str, Curve]:
    """The record and the curve of one line."""
    published = json.loads(line)
    record, total = published["log"].split("/")[1], published["steps"]
    named = next((UNNAMED[start] for start in UNNAMED if record.startswith(start)), (0, 0, 0))
    train, optim = published["settings"].get("train", {}), published["settings"].get("optim", {})
    warmdown = train.get("warmdown_fraction", named[0])
    schedule = TrainConfig(
        iterations=total,
        max_seconds=0.0,
        warmdown_steps=int(warmdown),
        warmdown_fraction=warmdown if warmdown < 1 else 0.0,
        min_lr=named[1],
    )
    lr = optim.get("muon_lr", 0.026 if named[2] == 0.095 else 0.02)
    z = 1000 * lr * optim.get("muon_weight_decay", named[2])
    losses = {step: loss for step, loss, *_ in published["val"] if step}
    return record, Curve(
        published["log"],
        dict(published["train_loss"]),
        losses,
        total,
        schedule,
        z,
        (train.get("batch_tokens"), None),
    )


def fitted(curves: Sequence[tuple[str, Curve]], rounds: int = 12) -> Shape:
    """Means and covariance of the curves' forms by expectation maximization; a record counts once."""
    shape, names = SHAPE, [record for record, _ in curves]
    weights = np.array([1 / names.count(record) for record in names])
    zs, points = [curve.z for _, curve in curves], [evidence(curve)[:2] for _, curve in curves]
    features = np.array([[1, z] for z in zs])
    for _ in range(rounds):
        prior = np.linalg.inv(np.array(shape.covariance))
        values, spreads = [], []
        for z, (precision, weighted) in zip(zs, points, strict=True):
            mean = np.array([shape.v[0] + shape.v[1] * z, shape.w, shape.offset])
            whole = precision + np.diag([1e-4, 0, 0, 0])
            whole[1:, 1:] += prior
            covariance = np.linalg.inv(whole)
            values.append((covariance @ (weighted + np.r_[0, prior @ mean]))[1:])
            spreads.append(covariance[1:, 1:])
        found = np.array(values)
        v = np.linalg.lstsq(features * weights[:, None] ** 0.5, found[:, 0] * weights**0.5, rcond=None)[0]
        w, offset = weights @ found[:, 1:] / weights.sum()
        away = found - np.stack([features @ v, np.full(len(found), w), np.full(len(found), offset)], 1)
        scatter = [a * (np.outer(e, e) + s) for a, e, s in zip(weights, away, spreads, strict=True)]
        covariance = np.sum(scatter, axis=0) / weights.sum() + 1e-6 * np.eye(3)
        shape = Shape(
            (float(v[0]), float(v[1])), float(w), float(offset), tuple(map(tuple, covariance.tolist()))
        )
    return shape


def naive(curve: Curve, at: float) -> tuple[float, float]:
    """The last value seen, and the end of a power law of the steps, through scores if there are two."""
    seen = curve.until(at)
    points = seen.val if len(seen.val) > 1 else {s: y for s, y in seen.train.items() if s >= 0.1 * seen.total}
    if len(points) < 2:
        return float("nan"), float("nan")
    last = next(reversed(seen.val.values())) if seen.val else next(reversed(points.values()))
    slope, level = np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)
    return last, float(np.exp(level + slope * np.log(curve.total)))


def main(path: Path) -> None:
    curves = [read(line) for line in path.read_text().splitlines()]
    rows: dict[tuple[float, str], list[tuple[str, float]]] = {}
    held: dict[float, list[bool]] = {0.4: [], 0.6: []}
    for record in dict.fromkeys(name for name, _ in curves):
        others = [(name, curve) for name, curve in curves if name != record]
        shape = fitted(others)
        for curve in (curve for name, curve in curves if name == record):
            truth = list(curve.val.values())[-1]
            for at in held:
                if not any(step <= at * curve.total for step in curve.train):
                    continue
                by: dict[str, Prediction] = {
                    "form": predict(curve, at, (), shape),
                    "form and runs beside": predict(curve, at, [other for _, other in others], shape),
                }
                ends = dict(zip(("last value", "power law"), naive(curve, at), strict=True))
                ends |= {name: found.val_loss for name, found in by.items()}
                for name, end in ends.items():
                    rows.setdefault((at, name), []).append((record, 100 * (end / truth - 1)))
                last = by["form and runs beside"]
                held[at].append(last.low <= truth <= last.high)
    for (at, name), errors in sorted(rows.items()):
        sizes = [abs(error) for _, error in errors if error == error]
        means = [np.mean([abs(e) for r, e in errors if r == record]) for record in {r for r, _ in errors}]
        print(f"{at:.0%} {name:22} {len(sizes)} curves: mean {np.mean(sizes):.2f} %, "
              f"by record {np.nanmean(means):.2f} %, worst {max(sizes):.2f} %")  # fmt: skip
    for at, inside in held.items():
        print(f"{at:.0%} inside the interval: {sum(inside)} of {len(inside)}")
    print("fitted to all:", fitted(curves))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
