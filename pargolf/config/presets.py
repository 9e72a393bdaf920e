"""Presets, and the overlays that are laid over them: files that say what they change, and nothing else.

A stack such as "demo+legendre-mix+./mine.toml" begins with a preset; the others are overlays, laid over it
from left to right, those that say `above = true` after all the others. A preset changes the defaults in
`schema`, which are the published system (challenge pull request #215); an overlay changes whatever lies
below it. Both are shipped with the package (`presets/` and `presets/overlays/`), or TOML files of one's own.
"""

import dataclasses
import itertools
import tomllib
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pargolf.config.schema import RunConfig
from pargolf.config.settings import Settings, flatten, from_dict, to_dict, with_settings
from pargolf.config.validation import validate
from pargolf.system.errors import UserError, did_you_mean, require

PRESETS = resources.files("pargolf.config") / "presets"
OVERLAYS = PRESETS / "overlays"
PUBLISHED = "lowrank-q192"


@dataclass(frozen=True)
class Layer:
    """One file of a stack."""

    name: str
    """As the stack names it."""
    settings: Settings
    """What it changes."""
    about: str
    """What its first comment says, in one line; empty if it does not begin with one."""
    overlay: bool = False
    """Laid over a preset. A preset and an overlay may have the same name."""
    above: bool = False
    """Of an overlay: it is laid over all others, wherever the stack names it."""


def preset_names() -> list[str]:
    """Names of the presets shipped with the package, in alphabetical order."""
    return _names(PRESETS)


def overlay_names() -> list[str]:
    """Names of the overlays shipped with the package, in alphabetical order."""
    return _names(OVERLAYS)


def known_names() -> str:
    """Both in words, for a person who needs one."""
    return f"presets: {', '.join(preset_names())}; overlays: {', '.join(overlay_names())}"


def load_preset(stack: str) -> RunConfig:
    """The settings of a stack, not yet validated; UserError as `read_stack`."""
    settings = {name: value for layer in read_stack(stack) for name, value in layer.settings.items()}
    return with_settings(RunConfig(preset=stack), settings)


def add_overlays(config: RunConfig, overlays: str) -> RunConfig:
    """`config` with more overlays ("+a+b") laid over it, not yet validated; UserError as `read_stack`."""
    stack = config.preset + overlays
    kept = {name for layer in read_stack(stack) if layer.above for name in layer.settings}
    added = {
        name: value
        for layer in read_overlays(overlays)
        for name, value in layer.settings.items()
        if layer.above or name not in kept
    }
    return with_settings(dataclasses.replace(config, preset=stack), added)


def read_stack(stack: str) -> list[Layer]:
    """The files of a stack in the order in which they are laid, those that its preset builds on first.

    Raises UserError if a name or a file is none, or if two overlays set one setting to different values.
    """
    preset, plus, rest = stack.partition("+")
    return _read_preset(preset) + read_overlays(plus + rest)


def read_overlays(names: str) -> list[Layer]:
    """The files of overlays alone, "+a+b" or "", as they are laid; UserError as `read_stack`."""
    named = [_read_overlay(name) for name in names.split("+")[1:]]
    overlays = sorted(named, key=lambda layer: layer.above)
    setters: dict[tuple[bool, str], Layer] = {}
    for overlay in overlays:
        for name, value in overlay.settings.items():
            other = setters.setdefault((overlay.above, name), overlay)
            require(
                other.settings[name] == value,
                f"overlays {other.name} and {overlay.name} set {name} to {other.settings[name]} and to"
                f" {value}; take one of the two",
            )
    return overlays


def validated(config: RunConfig) -> RunConfig:
    """`config` if its settings fit together; else UserError, which names the overlay that is at fault."""
    try:
        return validate(config)
    except UserError as error:
        below, *overlays = config.preset.split("+")
        for overlay in overlays:
            stack = f"{below}+{overlay}"
            if _fault(stack) == str(error) != _fault(below):
                raise UserError(f"overlay {overlay} does not fit {below}: {error}") from None
            below = stack
        raise


def origins(config: RunConfig) -> dict[str, str]:
    """Who set each setting that is not at its default: a file of the configuration's stack, or an option."""
    setters = {name: layer.name for layer in read_stack(config.preset) for name in layer.settings}
    mine, stack, default = (flatten(to_dict(c)) for c in (config, load_preset(config.preset), RunConfig()))
    return {
        name: setters[name] if value == stack[name] else f"--{name}"
        for name, value in mine.items()
        if value != default[name]
    }


def _names(folder: Traversable) -> list[str]:
    names = [entry.name for entry in folder.iterdir()]
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def _fault(stack: str) -> str:
    """What `validate` says to a stack; empty if it fits together."""
    try:
        validate(load_preset(stack))
    except UserError as error:
        return str(error)
    return ""


def _read_preset(name: str) -> list[Layer]:
    """A preset's file; before it the files of the stack that it names as its base, if it does."""
    if name in overlay_names() and name not in preset_names():
        raise UserError(f"{name} is an overlay; lay it over a preset: {PUBLISHED}+{name}")
    if name not in preset_names() and not name.endswith(".toml"):
        near = did_you_mean(name, preset_names() + overlay_names())
        known = "" if near else f" ({known_names()}; or a path ending in .toml)"
        raise UserError(f"no preset '{name}'{near}{known}")
    values, about = _read_file(PRESETS, name)
    base = values.pop("base", None)
    if base is None:
        return [_layer(name, values, about)]
    # A file of one's own below another could lead round in a circle.
    if not isinstance(base, str) or base.split("+")[0].endswith(".toml"):
        raise UserError(f'{name}: base must be a preset of the package, as in base = "demo"; is {base!r}')
    try:
        below = read_stack(base)
    except UserError as error:
        raise UserError(f"{name} builds on '{base}': {error}") from None
    return [*below, _layer(name, values, about)]


def _read_overlay(name: str) -> Layer:
    if name in preset_names() and name not in overlay_names():
        raise UserError(f"{name} is a preset; a stack begins with it: {name}+{overlay_names()[0]}")
    if name not in overlay_names() and not name.endswith(".toml"):
        near = did_you_mean(name, overlay_names())
        known = "" if near else f" (there are: {', '.join(overlay_names())}; or a path ending in .toml)"
        raise UserError(f"no overlay '{name}'{near}{known}")
    values, about = _read_file(OVERLAYS, name)
    require("base" not in values, f"{name} names its base, so it is no overlay; begin the stack with it")
    above = values.pop("above", False)
    require(isinstance(above, bool), f"{name}: above must be true or false, is {above!r}")
    return dataclasses.replace(_layer(name, values, about), overlay=True, above=above)


def _read_file(folder: Traversable, name: str) -> tuple[dict[str, Any], str]:
    """Table and first comment of one of the package's files, or of one's own if `name` is its path."""
    file = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    if not file.is_file():
        raise UserError(f"no preset file {name}")
    try:
        text = file.read_bytes().decode()
        comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
        return tomllib.loads(text), " ".join(line.strip("# ") for line in comment)
    except (ValueError, RecursionError) as error:
        raise UserError(f"preset {name} is not valid TOML: {error}") from None


def _layer(name: str, values: dict[str, Any], about: str) -> Layer:
    require("preset" not in values, f'{name}: write base = "{values.get("preset")}" for the preset below it')
    near = [key for key in values if did_you_mean(key, ["base"])]
    require(not near, f"{name}: unknown setting {''.join(near[:1])}; did you mean base?")
    try:
        from_dict(values)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return Layer(name, flatten(values), about)
