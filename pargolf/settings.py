"""Settings by name, "section.field" -> value: what studies vary and comparisons show."""

import difflib
from collections.abc import Mapping
from typing import Any

from pargolf.config import RunConfig, flatten, from_dict, to_dict
from pargolf.errors import UserError

Settings = dict[str, Any]


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
        nearest = difflib.get_close_matches(name, known, 1)
        raise UserError(f"no setting '{name}'" + (f"; perhaps {nearest[0]}" if nearest else ""))
    kind = type(known[name])
    try:
        value = {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise UserError(f"{name} must be of type {kind.__name__}, is '{text}'") from None
    with_settings(RunConfig(), {name: value})  # refused if it is none of the setting's choices
    return value
