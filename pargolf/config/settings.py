"""Settings as plain values: read from JSON and TOML, written back, set and looked up by name."""

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pargolf.config.bounds import require_plain
from pargolf.config.schema import ExportConfig, ModelConfig, RunConfig
from pargolf.config.validation import TOP_LEVEL, validate, validate_model
from pargolf.system.errors import UserError, did_you_mean, require
from pargolf.system.escape import visible

# What codec and layout "auto" are expected to come to.
EXPECTED = {"codec": "brotli", "layout": "range"}

Settings = dict[str, Any]  # "section.field" -> value: what studies vary and comparisons show


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """`config` with some settings replaced, not yet validated; UserError on a value of the wrong type."""
    values = to_dict(config)
    for name, value in settings.items():
        section, field = name.split(".")
        values[section][field] = value
    return from_dict(values)


def read_setting(name: str, text: str) -> Any:
    """`text` as a value of a setting; UserError if there is no such setting or it takes no such value."""
    known = flatten(to_dict(RunConfig()))
    if name not in known:
        raise UserError(f"no setting '{name}'{did_you_mean(name, known)}")
    kind = type(known[name])
    try:
        value = {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise UserError(f"{name} must be of type {kind.__name__}, is '{text}'") from None
    with_settings(RunConfig(), {name: value})  # refused if it is none of the setting's choices
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """A config section or a whole RunConfig as plain JSON values."""
    return dataclasses.asdict(config)


def flatten(values: Mapping[str, Any]) -> Settings:
    """Settings as one table, "section.field" -> value, from nested ones as `to_dict` gives them."""
    return {
        f"{section}.{name}": value
        for section, fields in values.items()
        if isinstance(fields, dict)  # the stack's name is no setting
        for name, value in fields.items()
    }


def in_words() -> dict[str, str]:
    """What the schema says of each setting: "section.field" -> its docstring, in one line."""
    sections = get_type_hints(RunConfig)
    del sections["preset"]  # no setting
    return {
        f"{section}.{name}": text
        for section, kind in sections.items()
        for name, text in docstrings(kind).items()
    }


def docstrings(kind: type) -> dict[str, str]:
    """The docstring of each field that a class declares, in one line."""
    [declared] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(declared, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(declared.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(text.value.value, str)
    }


def to_toml(config: RunConfig, notes: Mapping[str, str]) -> str:
    """Every setting as TOML, which `from_dict` takes back; `notes` become comments of settings."""
    lines = []
    for section, fields in to_dict(config).items():
        if isinstance(fields, dict):
            lines.append(f"\n[{section}]")
            for name, value in fields.items():
                # TOML reads what JSON writes, except one character that it wants escaped.
                text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
                note = notes.get(f"{section}.{name}", "")
                lines.append(f"{name} = {text}" + (f"  # {visible(note)}" if note else ""))
    return "\n".join(lines).lstrip("\n") + "\n"


def from_dict(values: Any) -> RunConfig:
    """RunConfig from nested plain values (JSON, TOML); missing fields keep their defaults.

    Raises UserError on an unknown field or a value of the wrong type.
    """
    return build(RunConfig, values, "")


def model_from_dict(values: Any) -> ModelConfig:
    """ModelConfig from plain values, as an artifact's header holds them; UserError as `from_dict`."""
    model: ModelConfig = build(ModelConfig, values, "model")
    validate_model(model)
    return model


def export_from_dict(values: Any) -> ExportConfig:
    """ExportConfig from plain values, as an artifact's header holds them; UserError as `from_dict`."""
    export: ExportConfig = build(ExportConfig, values, "export")
    return export


def with_codec(export: ExportConfig, codec: str = "", layout: str = "") -> ExportConfig:
    """`export` with another codec, at its highest level, and another layout; "" leaves either as it is."""
    values = to_dict(export) | ({"layout": layout} if layout else {})
    if codec:
        values |= {"codec": codec, "level": TOP_LEVEL.get(codec, max(TOP_LEVEL.values()))}
    return export_from_dict(values)


def settled(export: ExportConfig) -> ExportConfig:
    """`export` with "auto" replaced by what it comes to for trained weights, where there are none to try."""
    codec, layout = (EXPECTED[name] if getattr(export, name) == "auto" else "" for name in EXPECTED)
    return with_codec(export, codec, layout)


def read_config(path: Path) -> RunConfig:
    """The config.json of a run; UserError, naming the file, if it is missing, malformed or out of bounds."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; is this a run folder?") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    try:
        return validate(from_dict(values))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def build(section: Any, values: Any, path: str) -> Any:
    """A `section` dataclass of `values`; fields they lack keep their defaults."""
    if not isinstance(values, dict):
        raise UserError(f"setting {path or 'root'} must be a table of settings, is {values!r}")
    hints = get_type_hints(section)
    for name in values:
        if name not in hints:
            full = f"{path}.{name}" if path else name
            near = did_you_mean(name, hints) or _elsewhere(name)
            raise UserError(f"unknown setting {full}{near} (known: {', '.join(hints)})")
    return section(
        **{
            name: _typed(hints[name], value, f"{path}.{name}" if path else name)
            for name, value in values.items()
        }
    )


def _elsewhere(name: str) -> str:
    """The same for a setting that stands in another section, or in none."""
    known = {full.partition(".")[2]: full for full in flatten(to_dict(RunConfig()))}
    return next((f"; did you mean {known[near]}?" for near in get_close_matches(name, known, 1)), "")


def _typed(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    if get_origin(hint) is Literal:
        if value in get_args(hint) and type(value) in {type(choice) for choice in get_args(hint)}:
            return value
        if (path, value) == ("export.layout", "packed"):
            raise UserError(
                "export.layout packed was removed; pargolf 0.1.0 before 2026-11-28 reads it:"
                " set another layout in the run's config.json and pack the run again"
            )
        raise UserError(f"{path} must be one of {', '.join(map(str, get_args(hint)))}; is {value!r}")
    if hint is float and type(value) is int:
        require(abs(value) < 2**1023, f"{path} is too large")
        value = float(value)
    if type(value) is not hint:
        raise UserError(f"{path} must be of type {hint.__name__}, is {value!r}")
    require_plain(path, value)
    return value
