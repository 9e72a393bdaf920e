"""Ablations: a grid of settings, each over several seeds, and what it shows."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pargolf.config.schema import RunConfig, validate
from pargolf.config.settings import Settings, from_dict, read_setting, to_dict, with_settings
from pargolf.study.children import Job, check_data, locked, refuse_incomparable, run_jobs, run_name, settle
from pargolf.study.compare import Comparison, compare, to_json
from pargolf.study.records import read_record
from pargolf.system.console import say
from pargolf.system.errors import UserError
from pargolf.system.files import write_json


@dataclass(frozen=True)
class Variation:
    """One point of the grid."""

    name: str
    settings: Settings
    """What it sets; nothing for the preset itself."""
    config: RunConfig


def read_axis(text: str) -> list[Settings]:
    """The alternatives of "model.q_rank=0,32", or of settings that change together, joined by "+".

    "model.d_model=128+model.n_heads=4,model.d_model=192+model.n_heads=6" has two alternatives.
    Raises UserError on a setting or value that does not exist, or that no comparison shows.
    """
    alternatives: list[Settings] = []
    first_name, equals, _ = text.partition("=")
    if not equals:
        raise UserError(f"'{text}' names no values; write section.field=value,value")
    for alternative in text.split(","):
        # A bare value is one more of the first setting. A "+" joins where a setting follows it;
        # elsewhere it belongs to the value, as in 1e+3.
        named = alternative if "=" in alternative else f"{first_name}={alternative}"
        settings: Settings = {}
        for part in re.split(r"\+(?=[\w-]+\.[\w-]+=)", named):
            name, _, value = part.partition("=")
            name = name.strip().replace("-", "_")
            refuse_incomparable(name)
            settings[name] = read_setting(name, value.strip())
        alternatives.append(settings)
    if len({frozenset(settings) for settings in alternatives}) > 1:
        raise UserError(f"the alternatives of '{text}' do not change the same settings")
    return alternatives


def variations(base: RunConfig, axes: Sequence[list[Settings]], one_at_a_time: bool) -> list[Variation]:
    """The product of the axes, or the base and each of their alternatives alone; each once, all valid."""
    if not axes:
        raise UserError("nothing to vary; add --vary section.field=value,value")
    if one_at_a_time:
        chosen: list[Settings] = [{}, *itertools.chain(*axes)]
    else:
        chosen = [{k: v for part in parts for k, v in part.items()} for parts in itertools.product(*axes)]
    found: dict[RunConfig, Variation] = {}
    for settings in chosen:
        config = validate(with_settings(base, settings))
        found.setdefault(config, Variation(run_name(settings) or "base", settings, config))
    return list(found.values())


def ablate(
    preset: str,
    base: RunConfig,
    folder: Path,
    axes: Sequence[list[Settings]],
    seeds: int,
    at_once: int = 1,
    one_at_a_time: bool = False,
) -> Comparison:
    """Make every run that is not finished yet and compare the variations, the first as the baseline.

    A run's seed is the base's or one of its successors. All runs of one seed are made before
    those of the next, so that a study cut short has something to compare. Failed runs are
    recorded in study.json and stepped over, to be tried again next time. Raises UserError if
    settings or data are bad, before anything runs, and if no run finished; Stopped by a signal.
    """
    if seeds < 1 or at_once < 1:
        raise UserError(f"seeds {seeds} and jobs {at_once} must be at least 1")
    base = settle(base, _recorded(folder / "study.json"), folder)
    todo = variations(base, axes, one_at_a_time)
    check_data(variation.config for variation in todo)
    numbers = [base.train.seed + index for index in range(seeds)]
    jobs = [_job(preset, variation, seed, folder) for variation in todo for seed in numbers]
    study: dict[str, Any] = {
        "preset": preset,
        "base": to_dict(base),
        "variations": {variation.name: variation.settings for variation in todo},
        "seeds": numbers,
        "failures": {},
    }
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
        finished = [read_record(job.folder) for job in jobs if job.finished]
        if not finished:
            first = next(iter(study["failures"].values()))
            raise UserError(f"no run of {folder} finished; the first failed with: {first}")
        comparison = compare(finished)
        write_json(folder / "comparison.json", to_json(comparison))
    if study["failures"]:
        say(f"{len(study['failures'])} of {len(jobs)} runs failed; {folder}/study.json says why")
    return comparison


def _job(preset: str, variation: Variation, seed: int, folder: Path) -> Job:
    config = with_settings(variation.config, {"train.seed": seed})
    return Job(preset, config, folder / f"{variation.name}-seed{seed}")


def _recorded(path: Path) -> RunConfig | None:
    """The settings that the study was begun with; None for a new one."""
    if not path.exists():
        return None
    try:
        return from_dict(json.loads(path.read_text())["base"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; choose another --name or remove it") from None
