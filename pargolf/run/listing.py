"""Which runs and studies a folder holds, and how far each is; reads no tensor."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import safetensors

from pargolf.config.settings import read_config
from pargolf.run.folder import Run, read_lines
from pargolf.system.errors import UserError
from pargolf.system.files import is_locked

# What reading a file raises that holds something else than it should.
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError)


@dataclass(frozen=True)
class Listed:
    """One run, as far as its folder tells."""

    name: str
    state: str
    """running, interrupted, trained, packed, scored, imported, or what is wrong with the folder."""
    step: int | None
    iterations: int | None
    val_bpb: float | None
    """Of the artifact, or the last one of the training."""
    bytes_total: int | None
    changed: datetime
    """When its last file was written."""


def list_runs(folder: Path) -> list[Listed]:
    """The runs in a folder and in the studies in it, by name; UserError if there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; `pargolf run demo` makes runs/demo")
    found = [place.parent for mark in ("config.json", "imported.json") for place in folder.glob(f"*/{mark}")]
    found += [place.parent for place in folder.glob("*/*/config.json")]
    return [_listed(place, str(place.relative_to(folder))) for place in sorted(set(found))]


def _listed(folder: Path, name: str) -> Listed:
    run = Run(folder)
    changed = datetime.fromtimestamp(max(path.stat().st_mtime for path in folder.iterdir()))
    try:
        iterations = read_config(run.config).train.iterations if run.config.exists() else None
        progress = _progress(run.checkpoint)
        result: dict[str, Any] = json.loads(run.result.read_text()) if run.result.exists() else {}
        metrics = read_lines(run.metrics)
        scores = [line["val_bpb"] for line in metrics if "val_bpb" in line]
        if scored := list(result.get("artifact", {}).values()):
            scores.append(float(scored[-1]["val_bpb"]))
        steps = [result.get("steps"), progress.get("step"), metrics[-1]["step"] if metrics else None]
        return Listed(
            name,
            _state(run, progress, result),
            next((step for step in steps if step is not None), None),
            iterations,
            scores[-1] if scores else None,
            result.get("bytes_total"),
            changed,
        )
    except (UserError, OSError, *DAMAGE) as error:
        return Listed(name, f"damaged: {' '.join(str(error).split())}", None, None, None, None, changed)


def _state(run: Run, progress: dict[str, Any], result: dict[str, Any]) -> str:
    if is_locked(run.folder):
        return "running"
    if run.imported.exists():
        return "imported"
    if result:
        return "scored"
    if run.artifact.exists():
        return "packed"
    return "trained" if progress.get("finished") else "interrupted"


def _progress(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; empty without one."""
    if not checkpoint.exists():
        return {}
    with safetensors.safe_open(checkpoint, framework="numpy") as file:
        progress: dict[str, Any] = json.loads(file.metadata()["progress"])
    return progress
