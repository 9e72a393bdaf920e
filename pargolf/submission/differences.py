"""What a configuration changes in the preset that it was made from, in words."""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pargolf.config.presets import PUBLISHED, Layer, load_preset, preset_names, read_overlays, read_stack
from pargolf.config.schema import RunConfig
from pargolf.config.settings import flatten, in_words, to_dict, with_codec
from pargolf.study.compare import NOT_COMPARED, PATHS
from pargolf.system.errors import UserError


@dataclass(frozen=True)
class Setting:
    """One that a run has and its preset does not; values as TOML writes them."""

    name: str
    value: str
    base: str
    about: str


@dataclass(frozen=True)
class Differences:
    """Of a configuration from a preset of the package, without what only the machine decides."""

    base: str
    files: list[tuple[str, str]]
    """Name and first sentence of each overlay, and of the user's own files, whose settings the run has."""
    settings: list[Setting]
    """The others that differ."""


def differences(config: RunConfig) -> Differences:
    """How `config` differs from the preset that its stack begins with.

    A file of the stack that is gone, was changed since, or begins with no comment says nothing: what it set
    is then among the settings.
    """
    layers = _layers(config.preset)
    packaged = [layer.name for layer in layers if _is_packaged(layer)]
    base = packaged[-1] if packaged else PUBLISHED
    mine, theirs = (flatten(to_dict(c)) for c in (config, _as_chosen(load_preset(base), config)))
    files = [
        layer
        for layer in layers
        if not _is_packaged(layer) and layer.about
        if layer.settings.items() <= mine.items()
    ]
    told = NOT_COMPARED.union(*(layer.settings for layer in files))
    words = in_words()
    return Differences(
        base,
        [(Path(layer.name).stem, _first_sentence(layer.about)) for layer in files],
        [
            Setting(name, json.dumps(value), json.dumps(before), _first_sentence(words.get(name, "")))
            for name in mine
            if name not in told
            if (value := _portable(name, mine[name])) != (before := _portable(name, theirs[name]))
            if before != "auto"
        ],
    )


def _is_packaged(layer: Layer) -> bool:
    """Whether it is a preset of the package, with which differences can begin."""
    return not layer.overlay and layer.name in preset_names()


def _layers(stack: str) -> list[Layer]:
    """The files of a stack that can be read."""
    preset, *overlays = stack.split("+")
    found = []
    for read, name in [(read_stack, preset), *((read_overlays, f"+{name}") for name in overlays)]:
        try:
            found += read(name)
        except UserError:
            continue
    return found


def _as_chosen(base: RunConfig, config: RunConfig) -> RunConfig:
    """`base`, with the codec of `config` where `base` leaves the choice, and with it the level."""
    if base.export.codec != "auto":
        return base
    return dataclasses.replace(base, export=with_codec(base.export, config.export.codec))


def _portable(name: str, value: Any) -> Any:
    return Path(value).name if name in PATHS else value


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[^.]\.) ", text)[0]  # "0 .. n" is no end
