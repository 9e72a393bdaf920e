"""From the package's modules to one file: the one that a submission runs, or one to import elsewhere.

The file holds what its entries need (`script.main` under one configuration). It is made in two
steps: find the definitions that are reached, take out of them the branches that the settings
decide, and again, until nothing changes (`shake.py`, `fold.py`); write all of it out in reading
order (`layout.py`).
"""

import builtins
import json
import lzma
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import libcst as cst

from pargolf import __version__
from pargolf.bundle.evaluate import Frozen, freeze
from pargolf.bundle.fold import fold
from pargolf.bundle.layout import write_out
from pargolf.bundle.modules import Key, Node, read_module
from pargolf.bundle.shake import reach
from pargolf.config.environment import ENVIRONMENT
from pargolf.config.schema import RunConfig
from pargolf.config.settings import settled

Form = Literal["readable", "minified", "compressed"]

ENTRY = ("pargolf.submission.script", "main")
DOCSTRING = f"""A submission to the parameter-golf challenge, made by pargolf {__version__} from its modules.

    torchrun --standalone --nproc_per_node=8 train_gpt.py    trains, packs model.pgz and scores it
    python train_gpt.py                                      the same on one GPU or CPU
    python train_gpt.py --eval model.pgz                     scores an artifact

It holds what one configuration needs. ENVIRONMENT lists the environment variables that change it.
"""
ENDING = """

if __name__ == "__main__":
    main()
"""


@cache
def bundle(config: RunConfig) -> str:
    """The source of train_gpt.py for `config`: readable, with comments and docstrings.

    Raises ValueError if the package holds something that cannot be moved into one file, or codec
    or layout are not settled.
    """
    if "auto" in (config.export.codec, config.export.layout):
        raise ValueError("codec and layout are auto: `pack` settles them, and the artifact says how")
    # What a finished run has recorded of its own machine is left open.
    t = replace(config.train, device="auto", compile="off" if config.train.compile == "off" else "auto")
    config = replace(config, train=t)
    frozen = freeze(config, ENVIRONMENT.values())
    return write_out(_reduce(_defaults(config), [ENTRY], frozen), [ENTRY], DOCSTRING, ENDING)


@cache
def bundle_classes(module: str, names: tuple[str, ...], docstring: str) -> str:
    """The source of a file with these classes of one module and what they need, whatever the settings.

    Raises ValueError if the package holds something that cannot be moved into one file.
    """
    entries = [(module, name) for name in names]
    return write_out(_reduce({}, entries, {}), entries, docstring)


def code_bytes(config: RunConfig) -> int:
    """Bytes of the train_gpt.py that `pargolf submit` writes for `config`, in the form that it names.

    Codec or layout "auto" count as what they are expected to come to.
    """
    source = bundle(replace(config, export=settled(config.export)))
    return len(in_form(source, config.export.code_form))


@cache
def in_form(source: str, form: Form) -> bytes:
    """The content of a train_gpt.py in one of its forms, which all do the same."""
    if form == "compressed":
        return compressed(source)
    return (minified(source) if form == "minified" else source).encode()


@cache
def minified(source: str) -> str:
    """The same program in fewer bytes: no comments, no docstrings, short names."""
    from python_minifier import RemoveAnnotationsOptions, minify

    # An interactive interpreter keeps its last value in the builtin `_`, whose name would then stay unused.
    last_value = vars(builtins).pop("_", None)
    try:
        return minify(
            source,
            # Annotations in classes are what makes fields of dataclasses.
            remove_annotations=RemoveAnnotationsOptions(remove_class_attribute_annotations=False),
            remove_literal_statements=True,
            rename_globals=True,
            hoist_literals=False,  # what is said twice costs a compressed file less than a name for it
        )
    finally:
        if last_value is not None:
            vars(builtins)["_"] = last_value


def compressed(source: str) -> bytes:
    """The minified program as a file that unpacks and runs itself.

    Latin-1 has a character for every byte, so that the text holds the packed bytes as they are; base85
    would make them a quarter longer.
    """
    packed = lzma.compress(minified(source).encode(), lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)
    text = packed.decode("latin-1")
    for char, escaped in (("\\", r"\\"), ('"', r"\""), ("\n", r"\n"), ("\r", r"\r")):
        text = text.replace(char, escaped)
    # \0 would take in a digit that follows it.
    text = re.sub("\0(?![0-7])", r"\\0", text).replace("\0", r"\x00")
    line = f'import lzma;exec(lzma.decompress("{text}".encode("latin-1")))'
    return f"# coding: latin-1\n{line}\n".encode("latin-1")


def _reduce(nodes: Mapping[Key, Node], entries: Sequence[Key], frozen: Frozen) -> dict[Key, Node]:
    """The definitions and methods that `entries` need under `frozen`; `nodes` as they are here."""
    while True:
        live = reach(nodes, entries)
        changed = fold(live, frozen)
        if not changed:
            return live
        nodes = {**nodes, **changed}


def _defaults(config: RunConfig) -> dict[Key, Node]:
    """The classes of settings with the values of `config` for defaults."""
    values = dict(freeze(config))
    nodes: dict[Key, Node] = {}
    for key in dict.fromkeys(setting[:2] for setting in values):
        node = read_module(key[0]).nodes[key]
        assert isinstance(node, cst.ClassDef)
        lines: list[cst.CSTNode] = []
        for line in node.body.body:
            match line:
                case cst.SimpleStatementLine([cst.AnnAssign(cst.Name(name)) as field]):
                    if (setting := (*key, name)) in values:
                        default = cst.parse_expression(_literal(values.pop(setting)))
                        line = line.with_changes(body=[field.with_changes(value=default)])
            lines.append(line)
        nodes[key] = node.with_changes(body=node.body.with_changes(body=lines))
    if values:
        raise ValueError(f"settings that their classes do not declare themselves: {list(values)}")
    return nodes


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:_}" if type(value) is int and value >= 10_000 else repr(value)
