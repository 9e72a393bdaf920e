"""submission.json: the fields that published records carry, their types, and what is missing."""

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeGuard

from pargolf.system.errors import UserError

# Every name that published records use for a field, the usual one first.
NAMES = {
    "author": ("author",),
    "github_id": ("github_id",),
    "name": ("name",),
    "date": ("date",),
    "val_bpb": ("val_bpb", "mean_val_bpb"),
    "val_loss": ("val_loss", "mean_val_loss"),
    "bytes_total": ("bytes_total", "artifact_bytes", "artifact_bytes_max"),
    "bytes_code": ("bytes_code", "code_bytes"),
    "blurb": ("blurb", "technique_summary", "summary", "description"),
}
# Stated by some, and not missed.
OPTIONAL = {
    "steps": ("steps", "step_stop", "final_step", "steps_trained", "training_steps"),
    "ms_per_step": ("ms_per_step", "step_avg_ms", "avg_step_ms", "step_ms", "ms_step"),
}
TEXTS = ("author", "github_id", "name", "blurb")
SCORES = ("val_bpb", "val_loss")
SIZES = ("bytes_total", "bytes_code")
REQUIRED = ("author", "github_id", "name", "date", "val_bpb")
LARGEST_TEXT = 1_000_000  # bytes of submission.json, and of the other texts
LARGEST_SCORE = 100  # nats or bits; above it, it is no score
LARGEST_COUNT = 10**15  # bytes, steps, milliseconds
MOST_DECIMALS = 20


@dataclass
class StatedFigures:
    """What submission.json states; a field that is missing or of the wrong type is not in `values`."""

    values: dict[str, Any] = field(default_factory=dict)
    """By the usual names: str, Decimal for scores, int for bytes and steps, float for milliseconds."""
    seed_results: dict[int, dict[str, Any]] = field(default_factory=dict)
    """The same for each seed; "bytes_total" may be the whole artifact or the model alone."""
    seeds: set[int] = field(default_factory=set)
    """All seeds it names."""
    track: str = ""
    faults: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def read_stated_figures(text: str) -> StatedFigures:
    """Read submission.json; what is wrong with its fields is noted in the result.

    Raises UserError if it is no JSON object.
    """
    try:
        raw = json.loads(text, parse_float=Decimal, parse_constant=_refuse)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise UserError(f"it is not valid JSON: {error or type(error).__name__}") from None
    if not isinstance(raw, dict):
        raise UserError("it holds no JSON object")
    track = raw.get("track")
    figures = StatedFigures(track=track if isinstance(track, str) else "")
    figures.values = _fields(raw, figures.faults)
    figures.faults += [f"{name} is missing" for name in REQUIRED if not _stated(raw, name)]
    missing = [name for name in NAMES if name not in REQUIRED and not _stated(raw, name)]
    if missing:
        figures.doubts.append(f"{', '.join(missing)} not stated")
    figures.seed_results = _seed_results(raw.get("seed_results"), figures)
    listed = raw.get("seeds")
    listed = listed if isinstance(listed, list) else []
    figures.seeds = {seed for seed in listed if _is_int(seed)} | set(figures.seed_results)
    return figures


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _stated(raw: dict[str, Any], name: str) -> list[str]:
    """The names under which a field has a value; null counts as none."""
    return [alias for alias in NAMES[name] if raw.get(alias) is not None]


def _fields(raw: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    """The known fields that are there and of the right type; the others become faults."""
    values: dict[str, Any] = {}
    for name in NAMES:
        for alias in _stated(raw, name)[:1]:
            value = raw[alias]
            wanted = _wanted(name, value)
            if wanted:
                shown = f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)[:60]
                faults.append(f"{alias} must be {wanted}, is {shown}")
            else:
                values[name] = Decimal(value) if name in SCORES else value
    for name, aliases in OPTIONAL.items():
        for alias in aliases:
            value = raw.get(alias)
            if name == "steps" and _is_int(value) and 0 <= value < LARGEST_COUNT:
                values.setdefault(name, value)
            elif name == "ms_per_step" and _is_number(value) and 0 < value < LARGEST_COUNT:
                values.setdefault(name, float(value))
    return values


def _wanted(name: str, value: Any) -> str:
    """What a field should be; empty if `value` is that."""
    if name in TEXTS:
        return "" if isinstance(value, str) and value.strip() else "a text"
    if name == "date":
        return "" if isinstance(value, str) and _is_date(value) else "an ISO date such as 2026-03-20"
    if name in SIZES:
        return "" if _is_int(value) and 0 < value < LARGEST_COUNT else "a whole number of bytes"
    number = Decimal(value) if _is_number(value) else Decimal(0)
    if 0 < number < LARGEST_SCORE and number == round(number, MOST_DECIMALS):
        return ""
    return f"a number between 0 and {LARGEST_SCORE}"


def _is_number(value: Any) -> TypeGuard[int | Decimal]:
    return _is_int(value) or isinstance(value, Decimal)


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _seed_results(raw: Any, figures: StatedFigures) -> dict[int, dict[str, Any]]:
    """{"42": {...}} or [{"seed": 42, ...}], as figures by seed; a bare number is a val_bpb."""
    if raw is None:
        return {}
    if isinstance(raw, list) and all(isinstance(item, dict) for item in raw):
        pairs = [(str(item.get("seed")), item) for item in raw]
    elif isinstance(raw, dict):
        pairs = list(raw.items())
    else:
        figures.faults.append("seed_results must be an object, or a list of objects with a seed each")
        return {}
    results: dict[int, dict[str, Any]] = {}
    for key, item in pairs:
        seed = re.fullmatch(r"(?:seed[_ ]?)?(\d{1,12})", key)
        if seed is None:
            figures.faults.append(f"seed_results: {key!r} is no seed")
            continue
        values = item if isinstance(item, dict) else {"val_bpb": item}
        faults: list[str] = []
        results[int(seed[1])] = _fields(values, faults)
        figures.faults += [f"seed {seed[1]}: {fault}" for fault in faults]
    return results
