"""Predicted ends: a law that comes back, schedules, shared batches, what cannot be predicted."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pargolf.cli import dispatch
from pargolf.config.schema import TrainConfig
from pargolf.study.predict import Curve, predict, read_curve, saw_the_same
from pargolf.study.sweep import predicted_worse
from pargolf.system.errors import UserError

STEPS = 5000
FLAT = TrainConfig(iterations=STEPS, max_seconds=0.0, warmdown_steps=0)
FALLING = replace(FLAT, warmdown_fraction=0.4)


def law(step: float, level: float = 0.7) -> float:
    """ln loss of a run whose learning rate stays."""
    return level + 0.05 * ((step / 7000) ** -0.7 - 1)


def curve(schedule: TrainConfig = FLAT, level: float = 0.7, noise: float = 0.03, seed: int = 0) -> Curve:
    """A curve of the law, the noise of whose batches goes by the seed, with a score every 1000 steps."""
    drawn = np.random.default_rng(seed).normal(0, noise, STEPS // 100)
    steps = range(100, STEPS + 1, 100)
    train = {s: math.exp(law(s, level) + e) for s, e in zip(steps, drawn.tolist(), strict=True)}
    val = {s: math.exp(law(s, level)) for s in steps if s % 1000 == 0}
    return Curve("made", train, val, STEPS, schedule)


def test_a_known_law_comes_back() -> None:
    found = predict(curve(), at=0.5)
    assert (found.step, found.total) == (2500, STEPS)
    assert found.val_loss == pytest.approx(math.exp(law(STEPS)), rel=0.005)
    assert found.truth is not None and found.low < found.truth < found.high


def test_a_decay_that_is_to_come_lowers_the_end() -> None:
    flat, falling = (predict(curve(schedule), at=0.5) for schedule in (FLAT, FALLING))
    assert falling.val_loss < 0.993 * flat.val_loss


def test_the_interval_covers() -> None:
    ends = [predict(replace(curve(seed=n), val={}), at=0.6) for n in range(40)]
    assert sum(end.low < math.exp(law(STEPS)) < end.high for end in ends) >= 34


def test_runs_that_saw_the_same_batches_are_known_by_their_noise_and_help() -> None:
    run, other = replace(curve(seed=1, level=0.72), val={}), curve(seed=1)
    assert saw_the_same(run, other)
    assert not saw_the_same(run, curve(seed=2))
    assert not saw_the_same(replace(run, batches=(8, None)), replace(other, batches=(4, None)))
    truth = math.exp(law(STEPS, 0.72))
    alone, helped = predict(run, at=0.3), predict(run, at=0.3, beside=[other, curve(seed=2)])
    assert (alone.beside, helped.beside) == (0, 1)
    assert abs(helped.val_loss - truth) < abs(alone.val_loss - truth)
    assert helped.high - helped.low < alone.high - alone.low


def write_run(
    folder: Path, made: Curve, until: int, settings: dict[str, object], finished: bool = False
) -> Path:
    """A run's folder with the first steps of a curve, as an imported log is one."""
    folder.mkdir()
    lines = [{"step": s, "train_loss": y} for s, y in made.train.items() if s <= until]
    lines += [{"step": s, "val_loss": y} for s, y in made.val.items() if s <= until]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "imported.json").write_text(json.dumps({"settings": {"train": settings}}))
    if finished:
        (folder / "result.json").write_text(json.dumps({"steps": until}))
    return folder


def test_the_length_is_that_of_the_settings_or_of_the_clock(tmp_path: Path) -> None:
    settings: dict[str, object] = {"iterations": 9000, "warmdown_steps": 100}
    run = write_run(tmp_path / "run", curve(), 1000, settings)
    assert read_curve(run).total == 9000
    (run / "imported.json").write_text(json.dumps({"settings": {"train": settings | {"max_seconds": 100.0}}}))
    seconds = [{"step": s, "seconds": s / 50} for s in range(100, 1001, 100)]
    (run / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in seconds))
    assert read_curve(run).total == STEPS


@pytest.mark.parametrize(
    ("settings", "until", "message"),
    [
        ({"iterations": STEPS}, 1000, "does not name its warm-down; say it: --warmdown"),
        ({"iterations": STEPS, "warmdown_steps": "many"}, 1000, "does not name its warm-down"),
        ({"warmdown_steps": 100}, 1000, "does not say how many steps"),
        ({"iterations": STEPS, "warmdown_steps": 100}, 500, "too few points"),
        ({"iterations": STEPS, "warmdown_steps": 100}, 0, "no loss curve"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(
    settings: dict[str, object], until: int, message: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", curve(), until, settings)
    with pytest.raises(UserError, match=message):
        predict(read_curve(run))


def test_a_log_that_names_no_warm_down_is_told_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", curve(), 3000, {"iterations": STEPS})
    assert read_curve(run, warmdown=3500).schedule.warmdown_steps == 3500
    assert read_curve(run, warmdown=0.75).schedule.warmdown_fraction == 0.75


def test_a_sweep_stops_a_hopeless_trial_and_no_other(tmp_path: Path) -> None:
    settings: dict[str, object] = {"iterations": STEPS, "warmdown_steps": 0}
    best = read_curve(write_run(tmp_path / "best", curve(), STEPS, settings, finished=True))
    hopeless = write_run(tmp_path / "hopeless", curve(level=0.9), 3000, settings)
    equal = write_run(tmp_path / "equal", curve(level=0.705, seed=1), 3000, settings)
    begun = write_run(tmp_path / "begun", curve(level=0.9), 100, settings)
    assert predicted_worse(hopeless, [best])
    assert not predicted_worse(equal, [best])
    assert not predicted_worse(begun, [best])
    assert not predicted_worse(hopeless, [])


def test_a_finished_run_is_shown_beside_its_prediction(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "predictions.json"
    assert dispatch(["predict", str(finished), "--at", "0.6", "--json", str(out)]) == 0
    assert "val_loss at the end" in capsys.readouterr().out
    (found,) = json.loads(out.read_text())["predictions"]
    assert found["step"] < found["total"] and found["truth"] == read_curve(finished).val[found["total"]]
    assert found["low"] < found["val_loss"] < found["high"]
    assert dispatch(["predict", str(finished), "--at", "1.5"]) == 2
