"""`pargolf import-log`: a published training log as a run's folder.

The folder holds what a log can give, in the formats of our own runs: metrics.jsonl, timing.jsonl,
result.json and the log itself. A log names only some settings, so there is no config.json but an
`imported.json`.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pargolf.config.environment import ENVIRONMENT
from pargolf.run.folder import Run, append_line
from pargolf.run.logs import LARGEST_LOG, LoggedScore, Setting, TrainLog, parse_log
from pargolf.system.errors import UserError
from pargolf.system.files import write_atomic, write_json

# Settings as logs name them -> as a run's config.json does. Of two names for one, the later counts.
SETTINGS = {
    "embed_lr": "optim.embed_lr",  # beside tied_embed_lr it is that of an untied embedding
    **{name.lower(): setting for name, setting in ENVIRONMENT.items() if not setting.startswith("data.")},
    "warmdown_frac": "train.warmdown_fraction",
    "muon_wd": "optim.muon_weight_decay",
}


def import_run(path: Path, runs: Path, name: str = "") -> str:
    """Make runs/NAME of the log at `path`; returns a line that says what it holds.

    UserError if it is no training log, or if the folder is there already.
    """
    data = _read(path)
    try:
        log = parse_log(data.decode("utf-8", errors="replace"))
    except UserError as error:
        raise UserError(f"{path} is no training log: {error}") from None
    run = Run(runs / (name or f"{path.resolve().parent.name}-{path.stem}"))
    if run.folder.exists():
        raise UserError(f"{run.folder} exists; choose another --name or remove it")
    runs.mkdir(parents=True, exist_ok=True)
    # Renamed when it is complete: a folder that is there is a whole one.
    building = Run(Path(tempfile.mkdtemp(prefix=f".{run.name}.", dir=runs)))
    try:
        write_atomic(building.log, data)
        write_json(building.imported, imported(log, path.name, data))
        write_json(building.result, result(log))
        _write_steps(building, log)
        building.folder.chmod(0o755)
        building.folder.rename(run.folder)
    except BaseException:
        shutil.rmtree(building.folder, ignore_errors=True)
        raise
    score = f"val_bpb {log.final.val_bpb}" if log.final else "no score of an artifact"
    return f"{run.folder}: {len(log.steps)} lines of {log.last_step or 0} steps, {score}"


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path} is no file; give a training log")
    if path.stat().st_size > LARGEST_LOG:
        raise UserError(f"{path} has more than {LARGEST_LOG:,} bytes; is it a training log?")
    return path.read_bytes()


def _write_steps(run: Run, log: TrainLog) -> None:
    run.metrics.touch()
    run.timing.touch()
    for step in log.steps:
        append_line(run.metrics, {"step": step.step} | {k: float(v) for k, v in step.losses.items()})
        if "train_loss" in step.losses and step.seconds is not None and step.exact:
            append_line(run.timing, {"step": step.step, "seconds": float(step.seconds)})
    # Where the lines of steps round to tenths of a minute, the line of the cap has the exact time.
    rounded = any(not step.exact for step in log.steps)
    timed = [step.step for step in log.steps if step.exact and "train_loss" in step.losses]
    if rounded and log.stopped_at and log.train_seconds and log.stopped_at not in timed:
        append_line(run.timing, {"step": log.stopped_at, "seconds": float(log.train_seconds)})


def imported(log: TrainLog, source: str, data: bytes) -> dict[str, Any]:
    """imported.json: where the run comes from, and the settings that its log names.

    "settings" has the sections and names of config.json, without those that the log does not
    name; "others" are settings that config.json has no name for, as the log gives them.
    """
    stated = log.settings if log.seed is None else log.settings | {"seed": log.seed}
    settings: dict[str, dict[str, Setting]] = {}
    for theirs, ours in SETTINGS.items():
        section, _, name = ours.partition(".")
        if theirs in stated:
            settings.setdefault(section, {})[name] = stated[theirs]
    return {
        "source": source,
        "sha256": hashlib.sha256(data).hexdigest(),
        "seed": log.seed,
        "settings": settings,
        "others": {name: value for name, value in stated.items() if name not in SETTINGS},
    }


def result(log: TrainLog) -> dict[str, Any]:
    """result.json as far as the log goes; the last score under "artifact" is the submission's.

    Scores of the artifact are "standard" or "sliding" as in our own runs, and else go by the
    label that the log gives them, such as "quantized_ttt".
    """
    figures: dict[str, Any] = {"artifact": {}, "checkpoint": {}}
    last = log.steps[-1] if log.steps else None
    if last and "val_loss" in last.losses and "val_bpb" in last.losses:
        figures["checkpoint"]["standard"] = {k: float(last.losses[k]) for k in ("val_loss", "val_bpb")}
    for score in log.scores:
        if score.of_checkpoint:
            figures["checkpoint"][score.label] = _figures(score)
        elif log.final and score.label != log.final.label:
            figures["artifact"][_how(score)] = _figures(score)
    if log.final:
        figures["artifact"].pop(_how(log.final), None)  # the submission's goes last
        figures["artifact"][_how(log.final)] = _figures(log.final)
    figures |= {
        "steps": log.last_step,
        "train_seconds": float(log.train_seconds) if log.train_seconds and log.train_exact else None,
        "stride": next((score.stride for score in reversed(log.scores) if score.stride), None),
        "seq_len": log.settings.get("eval_seq_len", log.settings.get("train_seq_len")),
        "bytes_model": log.model_bytes,
        "bytes_code": log.code_bytes,
        "bytes_total": log.total_bytes,
    }
    return {name: value for name, value in figures.items() if value not in (None, {})}


def _how(score: LoggedScore) -> str:
    if "sliding" in score.label:
        return "sliding"
    return "standard" if score.label.endswith(("roundtrip", "quantized")) else score.label


def _figures(score: LoggedScore) -> dict[str, float]:
    figures: dict[str, float | None] = {
        "val_loss": float(score.val_loss),
        "val_bpb": float(score.val_bpb),
        "tokens": score.tokens,
        "bytes": score.bytes,
        "seconds": float(score.seconds) if score.seconds is not None else None,
    }
    return {name: value for name, value in figures.items() if value is not None}
