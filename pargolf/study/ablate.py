"""Ablations: a grid of settings and overlays, each point over several seeds, and what it shows."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pargolf.config.presets import add_overlays, read_overlays, validated
from pargolf.config.schema import RunConfig
from pargolf.config.settings import Settings, from_dict, read_setting, to_dict, with_settings
from pargolf.study.children import (
    Job,
    check_at_once,
    check_data,
    locked,
    refuse_changed,
    refuse_incomparable,
    run_jobs,
    run_name,
    settle,
)
from pargolf.study.compare import Comparison, compare, to_json
from pargolf.study.records import RunRecord, read_record
from pargolf.system.console import say
from pargolf.system.errors import UserError
from pargolf.system.files import write_json

BASE = "base"  # the alternative that changes nothing


@dataclass(frozen=True)
class Change:
    """What an alternative changes: overlays are laid over the base, then settings are set."""

    overlays: str = ""
    """As in the name of a stack, "+a+b"."""
    settings: Settings = field(default_factory=dict)

    @property
    def name(self) -> str:
        return run_name(self.settings, self.overlays) or BASE

    def __add__(self, other: "Change") -> "Change":
        return Change(self.overlays + other.overlays, self.settings | other.settings)

    def of(self, base: RunConfig) -> RunConfig:
        """`base` so changed; UserError if the settings then do not fit together."""
        below = add_overlays(base, self.overlays) if self.overlays else base
        return validated(with_settings(below, self.settings))


@dataclass(frozen=True)
class Variation:
    """One point of the grid."""

    change: Change
    config: RunConfig


def read_axis(text: str) -> list[Change]:
    """The alternatives of one --vary, between commas.

    Of a setting, "model.q_rank=0,32"; of settings that change together, joined by "+",
    "model.d_model=128+model.n_heads=4,model.d_model=192+model.n_heads=6"; or of overlays,
    "base,+a,+a+b,+a+model.q_rank=0", where "base" is the preset as it is. Raises UserError on a
    setting, value or overlay that does not exist, or that no comparison shows.
    """
    first_name, equals, _ = text.partition("=")
    if text.startswith("+") or text.split(",")[0] == BASE:
        return [Change() if words == BASE else _read_change(words) for words in text.split(",")]
    if not equals:
        raise UserError(f"'{text}' names no values; write section.field=value,value or {BASE},+overlay")
    # A bare value is one more of the first setting.
    named = [words if "=" in words else f"{first_name}={words}" for words in text.split(",")]
    changes = [_read_change(words) for words in named]
    if len({frozenset(change.settings) for change in changes}) > 1:
        raise UserError(f"the alternatives of '{text}' do not change the same settings")
    return changes


def _read_change(text: str) -> Change:
    # A "+" joins where a setting follows it; elsewhere it belongs to the value, as in 1e+3.
    first, *rest = re.split(r"\+(?=[\w-]+\.[\w-]+=)", text)
    overlays = first if first.startswith("+") else ""
    for layer in read_overlays(overlays):
        for name in layer.settings:
            refuse_incomparable(name)
    settings: Settings = {}
    for part in rest if overlays else [first, *rest]:
        name, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"'{text}' is neither {BASE} nor +overlay nor section.field=value")
        name = name.strip().replace("-", "_")
        refuse_incomparable(name)
        settings[name] = read_setting(name, value.strip())
    return Change(overlays, settings)


def variations(base: RunConfig, axes: Sequence[list[Change]], one_at_a_time: bool) -> list[Variation]:
    """The product of the axes, or the base and each of their alternatives alone; each once, all valid."""
    if not axes:
        raise UserError(f"nothing to vary; add --vary section.field=value,value or --vary {BASE},+overlay")
    if one_at_a_time:
        changes = [Change(), *itertools.chain(*axes)]
    else:
        changes = [sum(parts, Change()) for parts in itertools.product(*axes)]
    found: dict[RunConfig, Variation] = {}
    for change in changes:
        config = change.of(base)
        found.setdefault(config, Variation(change, config))
    return list(found.values())


def ablate(
    base: RunConfig,
    folder: Path,
    axes: Sequence[list[Change]],
    seeds: int,
    at_once: int = 1,
    one_at_a_time: bool = False,
) -> Comparison:
    """Make every run that is not finished yet and compare the variations, the first as the baseline.

    A run's seed is the base's or one of its successors. Raises what `finish_runs` raises.
    """
    base = begin_study(base, folder, seeds)
    todo = variations(base, axes, one_at_a_time)
    numbers = [base.train.seed + index for index in range(seeds)]
    jobs = [job(variation, seed, folder) for variation in todo for seed in numbers]
    study = describe_study(base, todo, numbers)
    comparison = compare(finish_runs(folder, study, jobs, at_once))
    write_json(folder / "comparison.json", to_json(comparison))
    return comparison


def begin_study(base: RunConfig, folder: Path, seeds: int) -> RunConfig:
    """The settings that all runs of the study in `folder` start from, as `settle` makes them."""
    if seeds < 1:
        raise UserError(f"--seeds {seeds} must be at least 1")
    return settle(base, _recorded(folder / "study.json"), folder)


def describe_study(base: RunConfig, todo: Sequence[Variation], seeds: list[int]) -> dict[str, Any]:
    """What study.json holds before the first run."""
    return {
        "base": to_dict(base),
        "variations": {
            variation.change.name: {
                "preset": variation.config.preset,
                "settings": variation.change.settings,
            }
            for variation in todo
        },
        "seeds": seeds,
        "failures": {},
    }


def finish_runs(folder: Path, study: dict[str, Any], jobs: Sequence[Job], at_once: int) -> list[RunRecord]:
    """Make every run that is not finished yet; the records of those that now are.

    All runs of one seed are made before those of the next, so that a study cut short has
    something to compare. Failed runs are recorded in study.json and stepped over, to be tried
    again next time. Raises UserError if settings or data are bad, before anything runs, and if
    no run finished; Stopped by a signal.
    """
    check_at_once(at_once)
    for job in jobs:
        refuse_changed(job)
    check_data(job.config for job in jobs)
    with locked(folder) as lock:
        write_json(folder / "study.json", study)
        unfinished = [job for job in jobs if not job.finished]
        unfinished.sort(key=lambda job: job.config.train.seed)
        say(f"{folder}: {len(jobs)} runs, {len(jobs) - len(unfinished)} of them finished before")
        for number, outcome in enumerate(run_jobs(unfinished, at_once, lock), 1):
            name = outcome.job.folder.name
            if outcome.error:
                study["failures"][name] = outcome.error
                write_json(folder / "study.json", study)
            result = outcome.error or f"val_bpb {read_record(outcome.job.folder).val_bpb:.4f}"
            say(f"{number}/{len(unfinished)} {name}: {result}")
    if study["failures"]:
        say(f"{len(study['failures'])} of {len(jobs)} runs failed; {folder}/study.json says why")
    finished = [read_record(job.folder) for job in jobs if job.finished]
    if not finished:
        first = next(iter(study["failures"].values()))
        raise UserError(f"no run of {folder} finished; the first failed with: {first}")
    return finished


def job(variation: Variation, seed: int, folder: Path) -> Job:
    """The run of `variation` with this seed."""
    config = with_settings(variation.config, {"train.seed": seed})
    return Job(config, folder / f"{variation.change.name}-seed{seed}")


def _recorded(path: Path) -> RunConfig | None:
    """The settings that the study was begun with; None for a new one."""
    if not path.exists():
        return None
    try:
        return from_dict(json.loads(path.read_text())["base"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; choose another --name or remove it") from None
