"""From the package's modules to one file: the one that a submission runs, or one to import elsewhere.

The file holds what its entries need (`script.main` under one configuration), and nothing else. It
is made in three steps: find the definitions that are reached, take out of them what constants make
needless, and again, until nothing changes (`shake.py`, `learn.py`, `fold.py`); keep the settings
that are left to read; write all of it out in reading order (`layout.py`).
"""

import ast
import base64
import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cache

import libcst as cst

from pargolf import __version__
from pargolf.bundle.fold import fold
from pargolf.bundle.known import SECTIONS, Known, Settings, scope_of
from pargolf.bundle.layout import write_out
from pargolf.bundle.learn import learn
from pargolf.bundle.modules import Key, Node, mentions, parts_of, read_module
from pargolf.bundle.shake import reach
from pargolf.config.environment import ENVIRONMENT
from pargolf.config.schema import RunConfig
from pargolf.config.settings import settled

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
    schema = read_module("pargolf.config.schema").nodes  # of which the settings' properties stay as they are
    frozen = {key: node for key, node in schema.items() if key[1] in SECTIONS}
    frozen |= {key: _freeze(key[1], config) for key in frozen if len(key) == 2}
    changeable = [setting.split(".") for setting in ENVIRONMENT.values()]
    settings = Settings(config, frozenset((section, name) for section, name in changeable))
    return write_out(_reduce(frozen, [ENTRY], settings), [ENTRY], DOCSTRING, ENDING)


@cache
def bundle_classes(module: str, names: tuple[str, ...], docstring: str) -> str:
    """The source of a file with these classes of one module and what they need, whatever the settings.

    Raises ValueError if the package holds something that cannot be moved into one file.
    """
    entries = [(module, name) for name in names]
    sections = [(section, getattr(RunConfig(), section)) for section in SECTIONS.values()]
    every = frozenset((section, field.name) for section, part in sections for field in fields(part))
    return write_out(_reduce({}, entries, Settings(RunConfig(), every)), entries, docstring)


def code_bytes(config: RunConfig) -> int:
    """UTF-8 bytes of the train_gpt.py that `pargolf submit` writes for `config`, in its readable form.

    Codec or layout "auto" count as what they are expected to come to.
    """
    return len(bundle(replace(config, export=settled(config.export))).encode())


def minified(source: str) -> str:
    """The same program in fewer bytes: no comments, no docstrings, short names."""
    from python_minifier import RemoveAnnotationsOptions, minify

    # Annotations in classes are what makes fields of dataclasses.
    annotations = RemoveAnnotationsOptions(remove_class_attribute_annotations=False)
    return minify(source, remove_annotations=annotations, remove_literal_statements=True, rename_globals=True)


def compressed(source: str) -> str:
    """The minified program as a file that unpacks and runs itself."""
    data = lzma.compress(minified(source).encode(), lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)
    text = base64.b85encode(data).decode()
    return f'import base64,lzma;exec(lzma.decompress(base64.b85decode("{text}")))\n'


def _reduce(nodes: dict[Key, Node], entries: Sequence[Key], settings: Settings) -> dict[Key, Node]:
    """The definitions and methods that `entries` need under `settings`; `nodes` as they are here."""
    known = None
    while True:
        live = reach(nodes, entries)
        known = learn(live, settings, known)
        changed = fold(live, known)
        if not changed:
            return live | _read_settings(live, known)
        nodes |= changed


def _freeze(kind: str, config: RunConfig) -> Node:
    """The class of settings `kind` with the values of `config` for defaults."""
    section = getattr(config, SECTIONS[kind])
    node = read_module("pargolf.config.schema").nodes["pargolf.config.schema", kind]
    assert isinstance(node, cst.ClassDef)
    lines: list[cst.CSTNode] = []
    for line in node.body.body:
        match line:
            case cst.SimpleStatementLine([cst.AnnAssign(cst.Name(name)) as declaration]):
                default = cst.parse_expression(_literal(getattr(section, name)))
                lines.append(line.with_changes(body=[declaration.with_changes(value=default)]))
            case _:
                lines.append(line)
    return node.with_changes(body=node.body.with_changes(body=lines))


def _literal(value: str | bool | int | float) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:_}" if type(value) is int and value >= 10_000 else repr(value)


def _read_settings(live: Mapping[Key, Node], known: Known) -> dict[Key, Node]:
    """The classes of settings with those fields alone that the program reads."""
    words = {word for key, node in live.items() if key[-1] not in SECTIONS for word in mentions(node).words}
    words |= {word.rpartition(".")[2] for word in words}  # "section.field", as ENVIRONMENT has them
    whole: set[str] = set()  # handed to a function that looks at all fields
    for key, node in live.items():
        scope = scope_of(key, node, known)
        for part in parts_of(node):
            if isinstance(part, ast.Call):
                whole |= {x.id for x in part.args if isinstance(x, ast.Name)}
                if ast.unparse(part.func) in ("asdict", "dataclasses.asdict"):
                    whole |= {scope.section(x) for x in part.args}
    return {
        key: _without_fields(node, words)
        for key, node in live.items()
        if key[0] == "pargolf.config.schema" and key[-1] in SECTIONS and key[1] not in whole
    }


def _without_fields(node: Node, read: set[str]) -> Node:
    """A dataclass with the fields that are read; each goes with the string that explains it."""
    assert isinstance(node, cst.ClassDef)
    lines: list[cst.CSTNode] = []
    keeps = True
    for line in node.body.body:
        match line:
            case cst.SimpleStatementLine([cst.AnnAssign(cst.Name(name))]):
                keeps = name in read
        if keeps:
            lines.append(line)
    return node.with_changes(body=node.body.with_changes(body=lines))
