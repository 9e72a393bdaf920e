"""Many definitions as the text of one file: names that do not meet, imports, chapters in reading order."""

import builtins
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import libcst as cst

from pargolf.bundle.modules import (
    Import,
    Key,
    Node,
    bindings,
    find_definition,
    find_module,
    mentions,
    read_module,
)

# The folders of modules in the order of reading; what is listed nowhere is read with "system".
FOLDERS = (
    "challenge", "config", "system", "data", "model", "optim", "train", "export", "fit", "score", "run",
    "submission", "huggingface",
)  # fmt: skip
RULE = "# " + "-" * 98
# Comments that speak to the package's own tools.
ASIDES = ("type: ignore", "noqa", "fmt: ")


def write_out(live: Mapping[Key, Node], entries: Sequence[Key], docstring: str, ending: str = "") -> str:
    """The source of a file that holds the definitions `live`, `entries` by their own names, and ends so.

    Raises ValueError if they cannot live in one file.
    """
    names = _names(live)
    if renamed := [names[key] for key in entries if names[key] != key[1]]:
        raise ValueError(f"other definitions have the names of entries, which would be {renamed}")
    definitions = {key: _rename(key, node, names) for key, node in live.items()}
    chapters = _chapters(definitions, entries[-1][0])
    header = f'"""{docstring}"""\n\nfrom __future__ import annotations\n'
    text = "\n".join([header, _imports(live), *chapters, ending])
    return "\n".join(map(_without_aside, text.split("\n")))


# Names


def _names(live: Mapping[Key, Node]) -> dict[Key, str]:
    """A name for every definition: its own, with its module's before it where two would meet."""
    keys: list[Key] = [key for key in live if len(key) == 2]
    count = Counter(key[1] for key in keys)
    taken = {entry.bound for entry in _external(live)} | set(dir(builtins))
    for key, node in live.items():  # and where it is used, a local variable may have its name
        taken |= {name for _, name in mentions(key[0], node).members if name in bindings(node)}
    names = {key: _long_name(key) if key[1] in taken or count[key[1]] > 1 else key[1] for key in keys}
    if len(set(names.values())) < len(names):
        raise ValueError("two definitions have the same name, in modules of the same name")
    return names


def _long_name(key: Key) -> str:
    module, name = key[0].rpartition(".")[2], key[1]
    if name.isupper():
        return f"{module.upper()}_{name}"
    return f"_{module}{name}" if name.startswith("_") else f"{module}_{name}"


def _rename(key: Key, node: Node, names: Mapping[Key, str]) -> Node:
    """A definition that goes by its name in the file and calls others by theirs."""
    found, bound = mentions(key[0], node), bindings(node).keys()
    used = {name: target for name, target in (found.definitions | found.unions).items() if name not in bound}
    plain = {key[1]: names[key[:2]]} | {name: names[target] for name, target in used.items()}
    members = {member: names[target] for member, target in found.members.items()}
    if hidden := bound & {*(new for old, new in plain.items() if old != new), *members.values()}:
        raise ValueError(f"{'.'.join(key)} has variables by the names of definitions it uses: {hidden}")
    if not members and all(old == new for old, new in plain.items()):
        return node
    renamed = node.visit(_Renamer(plain, members))
    assert isinstance(renamed, Node)
    return renamed


class _Renamer(cst.CSTTransformer):
    def __init__(self, plain: Mapping[str, str], members: Mapping[tuple[str, str], str]):
        super().__init__()
        self.plain, self.members = plain, members
        self.kept: set[cst.CSTNode] = set()  # names of attributes and keywords

    def visit_Attribute(self, node: cst.Attribute) -> None:
        self.kept.add(node.attr)

    def visit_Arg(self, node: cst.Arg) -> None:
        self.kept |= {node.keyword} if node.keyword else set()

    def leave_Name(self, old: cst.Name, node: cst.Name) -> cst.Name:
        if old in self.kept:
            return node
        return node.with_changes(value=self.plain.get(node.value, node.value))

    def leave_Attribute(self, old: cst.Attribute, node: cst.Attribute) -> cst.Attribute | cst.Name:
        match old:
            case cst.Attribute(cst.Name(alias), cst.Name(name)) if (alias, name) in self.members:
                return cst.Name(self.members[alias, name])
        return node


# Imports


def _external(live: Mapping[Key, Node]) -> set[Import]:
    """The imports of other packages that the definitions need; ValueError if two bind one name."""
    found = {entry for key, node in live.items() for entry in mentions(key[0], node).imports}
    count = Counter(entry.bound for entry in found)
    if several := sorted(str(entry) for entry in found if count[entry.bound] > 1):
        raise ValueError(f"two imports bind one name: {', '.join(several)}")
    return found


def _imports(live: Mapping[Key, Node]) -> str:
    """Import statements, the standard library's first."""
    plain, members = [], defaultdict(list)
    for entry in sorted(_external(live), key=lambda entry: (entry.module, entry.name.lower())):
        alias = f" as {entry.alias}" if entry.alias else ""
        if entry.name:
            members[entry.module].append(entry.name + alias)
        else:
            plain.append(f"import {entry.module}{alias}")
    lines = plain + [f"from {module} import {', '.join(names)}" for module, names in members.items()]
    standard = [line for line in lines if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
    return "\n".join([*standard, "", *(line for line in lines if line not in standard)])


# Text


def _chapters(definitions: Mapping[Key, Node], last: str) -> Iterator[str]:
    """The definitions under the names of folders; within one, each module after those it needs."""
    place = {folder: number for number, folder in enumerate(FOLDERS)}
    modules = list(_in_order(last, {key[0] for key in definitions}, set()))
    modules.sort(key=lambda module: place.get(module.split(".")[1], place["system"]))
    for folder, members in groupby(modules, key=lambda module: module.split(".")[1]):
        yield f"\n\n{RULE}\n# {folder.capitalize()}\n{RULE}"
        for module in members:
            yield from _module_text(module, definitions)


def _in_order(module: str, wanted: set[str], seen: set[str]) -> Iterator[str]:
    """Those of the `wanted` modules that `module` needs, and itself, each after what it needs."""
    seen.add(module)
    for name in read_module(module).imports:
        target = find_module(module, name) or (find_definition(module, name) or ("",))[0]
        if target in wanted - seen:
            yield from _in_order(target, wanted, seen)
    yield module


def _module_text(module: str, definitions: Mapping[Key, Node]) -> Iterator[str]:
    """A module's docstring as a comment, and its definitions."""
    source = read_module(module)
    if source.docstring:
        yield "\n\n" + "\n".join(f"# {line}".rstrip() for line in source.docstring.strip().split("\n"))
    after_block = True
    for key in source.nodes:
        if key not in definitions or len(key) == 3:
            continue
        node = definitions[key]
        if isinstance(node, cst.ClassDef):
            methods = [definitions[k] for k in source.nodes if k in definitions and k[:2] == key and k != key]
            node = node.with_changes(body=node.body.with_changes(body=[*node.body.body, *methods]))
        is_block = not isinstance(node, cst.SimpleStatementLine)
        is_apart = any(line.comment is None for line in node.leading_lines)
        comments = [line for line in node.leading_lines if line.comment]
        text = cst.Module([]).code_for_node(node.with_changes(leading_lines=comments))
        yield ("\n\n" if is_block or after_block else "\n" if is_apart else "") + text.rstrip("\n")
        after_block = is_block


def _without_aside(line: str) -> str:
    code, mark, comment = line.rpartition("  # ")
    return code if mark and comment.startswith(ASIDES) else line
