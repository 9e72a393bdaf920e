"""Presets: named settings, shipped with the package or in TOML files of one's own."""

import tomllib
from importlib import resources
from pathlib import Path

from pargolf.config.schema import RunConfig
from pargolf.config.settings import build, from_dict
from pargolf.system.errors import UserError

# The defaults above are the published seed system (challenge pull request #215), so
# `presets/lowrank-q192.toml` and `RunConfig()` say the same thing; a preset file still lists
# every field, so that a reader of the TOML sees all of them.


def preset_names() -> list[str]:
    """Names of the presets shipped with the package, in alphabetical order."""
    folder = resources.files("pargolf.config") / "presets"
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def load_preset(name: str) -> RunConfig:
    """The preset `name`, or the one in the TOML file at that path; UserError if there is none.

    A file that begins with `base = "PRESET"` says only what differs from that preset.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"no preset file {name}")
        text = path.read_bytes()
    elif name in preset_names():
        text = (resources.files("pargolf.config") / "presets" / f"{name}.toml").read_bytes()
    else:
        raise UserError(
            f"no preset '{name}'; there are: {', '.join(preset_names())}, or a path ending in .toml"
        )
    try:
        values = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"preset {name} is not valid TOML: {error}") from None
    base = values.pop("base", None)
    if base is None:
        return from_dict(values)
    if base not in preset_names() or base == name:
        raise UserError(f"preset {name} builds on {base!r}; it must be one of {', '.join(preset_names())}")
    return build(RunConfig, values, "", load_preset(base))
