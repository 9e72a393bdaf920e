"""Sweeps: Optuna looks for settings with a low val_bpb in few bytes.

A study has two objectives, val_bpb and bytes of code and model, and one constraint, the
budget. Its database is all that several machines share: each makes its runs in a folder of its
own, named by their settings, and whoever comes next learns from every trial.
"""

import socket
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial, Trial, TrialState

from pargolf.config.presets import add_overlays
from pargolf.config.schema import RunConfig
from pargolf.config.settings import Settings, from_dict, read_config, read_setting, to_dict, with_settings
from pargolf.run.folder import Run, read_lines
from pargolf.study.ablate import BASE, Change, read_axis
from pargolf.study.children import (
    Job,
    Outcome,
    check_at_once,
    check_data,
    locked,
    refuse_changed,
    refuse_incomparable,
    run_jobs,
    settle,
)
from pargolf.study.predict import Curve as Losses
from pargolf.study.predict import predict, read_curve
from pargolf.study.records import read_record
from pargolf.system.console import say
from pargolf.system.errors import UserError

ENOUGH = 5  # finished trials that must have come to a step before others are pruned there

Search = dict[str, BaseDistribution]  # "section.field" -> where to look
Curve = dict[int, float]  # step -> val_bpb during training


@dataclass(frozen=True)
class Point:
    """A finished trial."""

    number: int
    name: str
    """What it changes, as in the name of its run's folder."""
    settings: Settings
    val_bpb: float
    bytes_total: int


@dataclass(frozen=True)
class Front:
    """Where a sweep stands."""

    points: tuple[Point, ...]
    """Within the budget, and no other trial is better in both val_bpb and bytes; best val_bpb first."""
    complete: int
    pruned: int
    failed: int


def read_search(text: str) -> tuple[str, BaseDistribution]:
    """The setting and where to look: "field=a,b,c", "field=low:high", "...:step" or "...:log"; or overlays
    to choose from, "base,+a,+a+b", as `read_axis` takes them, under their whole text.

    Raises UserError on a setting, overlay or value that does not exist, and on a range with nothing in it.
    """
    if _is_overlays(text):
        read_axis(text)
        return text, CategoricalDistribution(tuple(dict.fromkeys(text.split(","))))
    name, equals, values = text.partition("=")
    if not equals:
        raise UserError(f"'{text}' names no range; write section.field=low:high or section.field=a,b,c")
    name = name.strip().replace("-", "_")
    refuse_incomparable(name)
    words = [word.strip() for word in values.split(":")]
    if len(words) == 1:
        choices = dict.fromkeys(read_setting(name, word.strip()) for word in values.split(","))
        return name, CategoricalDistribution(tuple(choices))
    log = words[2:] == ["log"]
    numbers = [read_setting(name, word) for word in (words[:2] if log else words)]
    kind: Any = {int: IntDistribution, float: FloatDistribution}.get(type(numbers[0]))
    if kind is None or len(words) > 3:
        raise UserError(f"cannot search {text}; ranges of numbers are low:high, low:high:step, low:high:log")
    try:
        return name, kind(*numbers[:2], log, *numbers[2:])  # low, high, log, step
    except ValueError as error:
        raise UserError(f"cannot search {text}: {error}") from None


def _is_overlays(text: str) -> bool:
    return text.startswith("+") or text.split(",")[0] == BASE


def change_of(params: Mapping[str, Any]) -> Change:
    """What a trial changes, by what it has drawn for each --search."""
    drawn = (
        read_axis(value)[0] if _is_overlays(name) else Change(settings={name: value})
        for name, value in params.items()
    )
    return sum(drawn, Change())


def sweep(
    base: RunConfig,
    folder: Path,
    search: Search,
    trials: int,
    storage: str = "",
    by_prediction: bool = False,
    at_once: int = 1,
) -> Front:
    """Go on until the study has `trials` that ended by themselves; returns where it then stands.

    `at_once` run side by side. `storage` is the URL of a database, by default a SQLite file in `folder`; the
    study in it has the folder's name. `by_prediction` also stops trials that are `predicted_worse`. Trials
    that this folder was interrupted in are continued first. Raises UserError if settings, data or database
    are bad; Stopped by a signal.
    """
    if trials < 1 or not search:
        raise UserError("a sweep needs at least one --search section.field=low:high and one trial")
    check_at_once(at_once)
    check_data([base])
    here = f"{socket.gethostname()}:{folder.resolve()}"
    with locked(folder) as lock:
        study, base = _open(base, folder, search, storage or _sqlite(folder / "study.db"))
        _queue_interrupted(study, here)
        asked: dict[Path, list[Trial]] = {}  # trials under way, by the run that they wait for

        def jobs() -> Iterator[Job]:
            while len(_ended(study)) + sum(map(len, asked.values())) < trials:
                trial = study.ask(search)
                trial.set_user_attr("folder", here)
                change = change_of({name: trial.params[name] for name in search})
                config = add_overlays(base, change.overlays) if change.overlays else base
                job = Job(with_settings(config, change.settings), folder / change.name)
                asked.setdefault(job.folder, []).append(trial)
                refuse_changed(job)
                if job.finished:
                    tell(Outcome(job, error="", given_up=False))
                elif len(asked[job.folder]) == 1:
                    yield job

        def tell(outcome: Outcome) -> None:
            for trial in asked.pop(outcome.job.folder):
                said = _tell(study, trial, outcome)
                say(f"{len(_ended(study))}/{trials} {outcome.job.folder.name}: {said}")

        for outcome in run_jobs(jobs(), at_once, lock, _hopeless(study, by_prediction)):
            tell(outcome)
        return _front(study)


def worse_than_median(curve: Curve, others: list[Curve]) -> bool:
    """True if the last val_bpb lies above the median of at least `ENOUGH` others at that step.

    The rule of Optuna's MedianPruner, which itself serves single objectives only.
    """
    if not curve:
        return False
    step = max(curve)
    there = [other[step] for other in others if step in other]
    return len(there) >= ENOUGH and curve[step] > statistics.median(there)


def predicted_worse(folder: Path, finished: Sequence[Losses]) -> bool:
    """Whether the predicted interval of the run's end lies above the best end of the finished ones."""
    ends = [other.val[other.total] for other in finished if other.total in other.val]
    try:
        return bool(ends) and predict(read_curve(folder), beside=finished).low > min(ends)
    except UserError:  # too few points yet
        return False


def _open(base: RunConfig, folder: Path, search: Search, storage: str) -> tuple[optuna.Study, RunConfig]:
    """The study, begun or continued, and the settings its trials start from."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            study_name=folder.name,
            storage=storage,
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise UserError(f"cannot open the study's database: {str(error).splitlines()[0]}") from None
    recorded = study.user_attrs.get("settings")
    base = settle(base, from_dict(recorded["base"]) if recorded else None, folder)
    searched = {name: distribution_to_json(where) for name, where in search.items()}
    if recorded and recorded["search"] != searched:
        raise UserError(f"{folder} holds a sweep with another --search; choose another --name")
    study.set_user_attr("settings", {"base": to_dict(base), "search": searched})
    # Each start draws anew: the same seed would repeat the first start's random trials.
    study.sampler = optuna.samplers.TPESampler(seed=base.train.seed + len(study.trials), constant_liar=True)
    return study, base


def _sqlite(path: Path) -> str:
    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()


def _queue_interrupted(study: optuna.Study, here: str) -> None:
    """Have the trials that were running in this folder, which is locked, asked for again."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if trial.user_attrs.get("folder") == here:
            study.enqueue_trial(trial.params)
            study.tell(trial.number, state=TrialState.FAIL)


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that count: finished, pruned, or failed with an error of their own."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    return [
        t for t in study.get_trials(states=states) if t.state != TrialState.FAIL or "error" in t.user_attrs
    ]


def _hopeless(study: optuna.Study, by_prediction: bool) -> Callable[[Job], bool]:
    """Whether a run falls behind the finished trials, asked again and again."""
    seen: dict[Path, int] = {}  # lines of metrics at the last answer, which nothing but a new line changes

    def hopeless(job: Job) -> bool:
        lines = len(read_lines(Run(job.folder).metrics))
        if seen.get(job.folder, 0) == lines:
            return False
        seen[job.folder] = lines
        complete = study.get_trials(states=(TrialState.COMPLETE,))
        others = [{step: bpb for step, bpb in trial.user_attrs["curve"]} for trial in complete]
        if worse_than_median(_curve(job), others):
            return True
        return by_prediction and predicted_worse(job.folder, _finished_beside(job))

    return hopeless


def _finished_beside(job: Job) -> list[Losses]:
    """Curves of the finished trials in this folder whose losses are of the same tokens as the job's."""
    folders = [path.parent for path in job.folder.parent.glob("*/result.json")]
    return [
        read_curve(folder) for folder in folders if read_config(Run(folder).config).data == job.config.data
    ]


def _tell(study: optuna.Study, trial: Trial, outcome: Outcome) -> str:
    """Tell the study how a trial's run ended; returns it in words.

    Optuna's trial.report and should_prune serve single objectives only, so the curve of a
    trial is kept as its user attribute.
    """
    curve = _curve(outcome.job)
    trial.set_user_attr("curve", list(curve.items()))
    if outcome.given_up and outcome.error:
        study.tell(trial, state=TrialState.PRUNED)
        where = f" at step {max(curve)}, val_bpb {curve[max(curve)]:.4f}" if curve else ""
        return f"pruned{where}"
    if outcome.error:
        trial.set_user_attr("error", outcome.error)
        study.tell(trial, state=TrialState.FAIL)
        return outcome.error
    record = read_record(outcome.job.folder)
    assert record.bytes_total is not None  # as in every run of ours
    trial.set_constraint("bytes over the budget", record.bytes_total - outcome.job.config.export.budget)
    study.tell(trial, [record.val_bpb, record.bytes_total])
    return f"val_bpb {record.val_bpb:.4f}, {record.bytes_total:,} bytes"


def _curve(job: Job) -> Curve:
    """val_bpb at the steps at which the run was scored on its way, its end left out."""
    train = job.config.train
    return {
        line["step"]: line["val_bpb"]
        for line in read_lines(Run(job.folder).metrics)
        if "val_bpb" in line and train.val_every and line["step"] % train.val_every == 0
        and line["step"] < train.iterations
    }  # fmt: skip


def _front(study: optuna.Study) -> Front:
    points = {}
    for trial in study.best_trials:
        name = change_of(trial.params).name
        points[name] = Point(trial.number, name, trial.params, trial.values[0], int(trial.values[1]))
    states = [trial.state for trial in _ended(study)]
    return Front(
        tuple(sorted(points.values(), key=lambda point: point.val_bpb)),
        *(states.count(state) for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)),
    )
