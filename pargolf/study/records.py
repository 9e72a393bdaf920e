"""What a finished run, our own or an imported one, has to say in a comparison."""

import dataclasses
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pargolf.config.schema import RunConfig
from pargolf.config.settings import Settings, flatten, from_dict, to_dict
from pargolf.run.folder import Run, read_lines
from pargolf.system.errors import UserError
from pargolf.system.files import sha256_file


@dataclass(frozen=True)
class RunRecord:
    """The figures of one finished run; None where the run does not tell."""

    name: str
    val_bpb: float
    """Bits per byte of the artifact as read back from disk: of its scores the last, after adaptation if
    there was one."""
    folder: Path | None = None
    """None for a published figure."""
    settings: Settings = dataclasses.field(default_factory=dict)
    """Every known setting, "section.field" -> value; an imported run may know few or none."""
    seed: int | None = None
    stride: int | None = None
    """Tokens a scoring window advanced by; seq_len where the run was scored by plain rows."""
    val_loss: float | None = None
    """Nats a token, scored as val_bpb is."""
    val_bytes: int | None = None
    """Bytes of validation text that were scored."""
    bytes_total: int | None = None
    """Code and model."""
    bytes_model: int | None = None
    budget: int | None = None
    step_ms: float | None = None
    """Median milliseconds a training step, over steps."""
    train_seconds: float | None = None
    steps: int | None = None
    stale: str = ""
    """What the score is not of: the artifact was made anew since."""
    preset: str = ""
    """The stack it was made of; empty where the run does not tell."""


def read_record(folder: Path) -> RunRecord:
    """The record of a run from its config.json, result.json, metrics.jsonl and timing.jsonl.

    config.json may be partial or missing, as in a run imported from a published log.
    Raises UserError if `folder` is no run, is unfinished, or holds a damaged file.
    """
    run = Run(folder)
    if not run.result.exists():
        if run.config.exists():
            raise UserError(f"{folder} is unfinished: it has no result.json; finish it with `pargolf run`")
        raise UserError(f"{folder} is no run folder: it has no result.json")
    result, (preset, settings) = read_json(run.result), read_settings(run)
    settings |= _as_done(result, settings)
    try:
        scores = result["artifact"]
        how = list(scores)[-1]  # "sliding"; of an imported run the score that its log ends with
        score = scores[how]
        val_bpb = float(score["val_bpb"])
    except (LookupError, TypeError, ValueError):
        raise UserError(
            f"{run.result} holds no score of an artifact; make it with `pargolf eval {folder}`"
        ) from None
    timing = read_lines(run.timing)
    metrics = read_lines(run.metrics)
    return RunRecord(
        name=run.name,
        val_bpb=val_bpb,
        folder=folder,
        settings=settings,
        seed=settings.get("train.seed"),
        stride=result.get("seq_len" if how == "standard" else "stride"),
        val_loss=score.get("val_loss"),
        val_bytes=score.get("bytes"),
        bytes_total=result.get("bytes_total"),
        bytes_model=result.get("bytes_model"),
        budget=result.get("budget"),
        step_ms=_median_step_ms(timing),
        train_seconds=result.get("train_seconds", timing[-1]["seconds"] if timing else None),
        steps=result.get("steps", metrics[-1]["step"] if metrics else None),
        stale=(
            f"{run.artifact} is newer than its score; score it with `pargolf eval {run.folder}`"
            if is_stale(run, result)
            else ""
        ),
        preset=preset,
    )


def _as_done(result: dict[str, Any], settings: Settings) -> Settings:
    """How the artifact was packed and scored; `pack` and `eval` may do so otherwise than the run was set to.

    "auto" stays: what it chooses in each run does not tell runs apart.
    """
    told = flatten({section: result.get(section) for section in ("export", "eval")})
    if settings.get("export.codec") == "auto":
        told.pop("export.level", None)  # goes with the codec
    return {name: value for name, value in told.items() if settings.get(name, "auto") != "auto"}


def is_stale(run: Run, result: dict[str, Any]) -> bool:
    """Whether the artifact is another than the one that was scored, as far as the run tells."""
    scored = result.get("artifact_sha256")
    return bool(scored) and run.artifact.exists() and sha256_file(run.artifact) != scored


def runs_in(folder: Path) -> list[Path]:
    """The folder itself if it is a run's; of a study the folders of its finished runs.

    They are in the order of an ablation's variations, whose first is the baseline, and by name. Raises
    UserError if it is a study without one, or its study.json is damaged.
    """
    if folder.is_file() or any((folder / name).exists() for name in ("config.json", "result.json")):
        return [folder]
    inside = sorted(path.parent for path in folder.glob("*/config.json"))
    finished = [path for path in inside if (path / "result.json").exists()]
    if inside and not finished:
        raise UserError(f"{folder} is a study of {len(inside)} runs, of which none is finished")
    study = folder / "study.json"
    variations = read_json(study).get("variations") if study.exists() else {}
    places = {name: n for n, name in enumerate(variations)} if isinstance(variations, dict) else {}
    finished.sort(key=lambda run: places.get(run.name.rpartition("-seed")[0], len(places)))
    return finished or [folder]


def read_records(folders: Iterable[Path]) -> list[RunRecord]:
    """`read_record` of each folder, of a study that of each finished run.

    Raises UserError if a run is named twice, which would count it twice.
    """
    records: dict[Path, RunRecord] = {}
    for folder in [run for named in folders for run in runs_in(named)]:
        if folder.resolve() in records:
            raise UserError(f"{folder} is named twice; a run counts once")
        records[folder.resolve()] = read_record(folder)
    return list(records.values())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; UserError if it is none."""
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def read_settings(run: Run) -> tuple[str, Settings]:
    """The stack that a run was made of, "" if it does not tell, and its known settings."""
    if run.imported.exists():
        return "", flatten(read_json(run.imported).get("settings", {}))
    if not run.config.exists():
        return "", {}
    values = read_json(run.config)
    # All sections: written by pargolf, perhaps by a version that lacked some options, which are then
    # off, their default, and the stack's name. Fewer: an imported run, whose unknown settings stay unknown.
    if values.keys() >= to_dict(RunConfig()).keys() - {"preset"}:
        values = to_dict(from_dict(values))
    return str(values.get("preset", "")), flatten(values)


def _median_step_ms(timing: list[dict[str, Any]]) -> float | None:
    """Median over steps of the milliseconds a step took, from seconds since the start at some steps.

    The median leaves out what a mean would keep: stalls, and the first steps of a cold cache.
    """
    step_ms: list[float] = []
    last_step, last_seconds = 0, 0.0
    for line in timing:
        steps, seconds = line["step"] - last_step, line["seconds"] - last_seconds
        # A run killed and continued elsewhere may seem to go back in time.
        if steps > 0 and seconds > 0:
            step_ms += [1000 * seconds / steps] * steps
        last_step, last_seconds = line["step"], line["seconds"]
    return statistics.median(step_ms) if step_ms else None
