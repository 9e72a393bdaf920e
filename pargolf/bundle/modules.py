"""The package's modules, taken apart into definitions, and what the code of each one refers to.

Modules go by their dotted names. A definition (function, class or constant) has the key
(module, name); a method has (module, class, method), and is kept apart from its class.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import libcst as cst
from libcst.helpers import get_full_name_for_node_or_raise

PACKAGE = "pargolf"
Key = tuple[str, ...]
Node = cst.FunctionDef | cst.ClassDef | cst.SimpleStatementLine
NOT_RUN = ("TYPE_CHECKING", '__name__ == "__main__"')  # when a module is imported


@dataclass(frozen=True)
class Import:
    """`from module import name as alias`, or `import module as alias` where name is empty."""

    module: str
    name: str
    alias: str

    @property
    def bound(self) -> str:
        """The name that the statement binds."""
        return self.alias or self.name or self.module.partition(".")[0]

    @property
    def is_ours(self) -> bool:
        """True for an import from the package."""
        return self.module.partition(".")[0] == PACKAGE


@dataclass(frozen=True)
class Module:
    """One source file: its definitions and methods in order, and its imports by the names they bind."""

    docstring: str
    nodes: dict[Key, Node]
    imports: dict[str, Import]


@cache
def read_module(name: str) -> Module:
    """Parse a module of the package; ValueError if it does at import what cannot be moved to one file."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(f"no module {name}")
    tree = cst.parse_module(Path(spec.origin).read_text(encoding="utf-8"))
    nodes: dict[Key, Node] = {}
    imports: dict[str, Import] = {}
    for index, statement in enumerate(tree.body):
        match statement:
            case cst.SimpleStatementLine([cst.Import() | cst.ImportFrom() as line]):
                imports |= {entry.bound: entry for entry in _imports(line)}
                continue
            case cst.If(test) if tree.code_for_node(test) in NOT_RUN:
                continue
        found = list(_definitions(statement))
        if index and not found:  # 0 is the docstring
            raise ValueError(f"{name} cannot be bundled, for: {tree.code_for_node(statement).strip()}")
        for path, node in found:
            if (name, *path) in nodes:
                raise ValueError(f"{name} cannot be bundled, since it defines {'.'.join(path)} twice")
            nodes[name, *path] = node
    return Module(tree.get_docstring() or "", nodes, imports)


def _imports(statement: cst.Import | cst.ImportFrom) -> Iterator[Import]:
    module = ""
    if isinstance(statement, cst.ImportFrom) and statement.module:
        module = get_full_name_for_node_or_raise(statement.module)
    for entry in statement.names if not isinstance(statement.names, cst.ImportStar) else ():
        name, alias = get_full_name_for_node_or_raise(entry.name), entry.evaluated_alias or ""
        yield Import(module, name, alias) if module else Import(name, "", alias)


def _definitions(statement: cst.CSTNode) -> Iterator[tuple[Key, Node]]:
    """What a statement of a module defines: a class apart from its methods, A, B = 1, 2 one by one."""
    match statement:
        case cst.FunctionDef(cst.Name(name)):
            yield (name,), statement
        case cst.ClassDef(cst.Name(name), body):
            methods = [part for part in body.body if isinstance(part, cst.FunctionDef)]
            rest = body.with_changes(body=[part for part in body.body if part not in methods])
            yield (name,), statement.with_changes(body=rest)
            yield from (((name, method.name.value), method) for method in methods)
        case cst.SimpleStatementLine(
            [cst.Assign([cst.AssignTarget(cst.Name(name))]) | cst.AnnAssign(cst.Name(name))]
        ):
            yield (name,), statement
        case cst.SimpleStatementLine([cst.Assign([cst.AssignTarget(cst.Tuple(targets))], cst.Tuple(values))]):
            names = [part.value.value for part in targets if isinstance(part.value, cst.Name)]
            if len(names) == len(targets) == len(values):
                for place, (name, value) in enumerate(zip(names, values, strict=True)):
                    one = cst.Assign([cst.AssignTarget(cst.Name(name))], value.value)
                    lines = () if place else statement.leading_lines
                    yield (name,), cst.SimpleStatementLine([one], lines)


def find_module(module: str, name: str) -> str:
    """The module of the package that `name` stands for inside `module`; "" if it stands for none."""
    entry = read_module(module).imports.get(name)
    if entry is None or not entry.is_ours or not entry.name:
        return ""
    full = f"{entry.module}.{entry.name}"
    return full if _is_package(entry.module) and find_spec(full) else ""


@cache
def _is_package(name: str) -> bool:
    spec = find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


@cache
def find_definition(module: str, name: str) -> Key | None:
    """The key of what `name` stands for inside `module`; None if it is not defined in the package."""
    source = read_module(module)
    if (module, name) in source.nodes:
        return module, name
    entry = source.imports.get(name)
    if entry is None or not entry.is_ours or find_module(module, name):
        return None
    return find_definition(entry.module, entry.name)


def is_made(key: Key) -> bool:
    """True for a class whose instances the program makes itself, by its name.

    False for an alias of types, and for a class that describes what others make.
    """
    tree = tree_of(read_module(key[0]).nodes[key])
    bases = map(ast.unparse, tree.bases if isinstance(tree, ast.ClassDef) else ())
    return isinstance(tree, ast.ClassDef) and not any("Protocol" in x or "TypedDict" in x for x in bases)


@cache
def code_of(node: Node) -> str:
    """The source of a definition, without the comments above it."""
    return cst.Module([]).code_for_node(node.with_changes(leading_lines=()))


@cache
def tree_of(node: Node) -> ast.stmt:
    """The syntax tree of a definition, for looking at; changes are made to the node."""
    return ast.parse(code_of(node)).body[0]


@cache
def parts_of(node: Node) -> tuple[ast.AST, ...]:
    """Every part of a definition's syntax tree, annotations left out."""
    return tuple(_walk(tree_of(node)))


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    yield tree
    for name, value in ast.iter_fields(tree):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _walk(child)


def own_parts(node: Node) -> list[ast.AST]:
    """The same without what belongs to the functions and classes inside it."""
    parts = parts_of(node)[1:]
    scopes = [part for part in parts if isinstance(part, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
    inner = {part for scope in scopes for part in ast.walk(scope) if part is not scope}
    return [part for part in parts if part not in inner]


@cache
def bindings(node: Node) -> Counter[str]:
    """How often each name is bound inside a definition, as a parameter or by a statement."""
    counts: Counter[str] = Counter()
    for part in parts_of(node)[1:]:
        match part:
            case ast.alias(name=name, asname=alias):
                counts[alias or name.partition(".")[0]] += 1
            case ast.Name(ctx=ast.Load()) | ast.keyword():
                pass
            case _:
                names = (getattr(part, field, None) for field in ("id", "arg", "name", "rest"))
                counts.update(name for name in names if isinstance(name, str))
    return counts


@dataclass(frozen=True)
class Mentions:
    """What the code of a definition refers to."""

    definitions: dict[str, Key] = field(default_factory=dict)
    """Names -> what they stand for in the package."""
    members: dict[tuple[str, str], Key] = field(default_factory=dict)
    """(MODULE, NAME) of every MODULE.NAME -> the same."""
    unions: dict[str, Key] = field(default_factory=dict)
    """Names that are one of several types, in an annotation that nothing evaluates -> the same."""
    imports: set[Import] = field(default_factory=set)
    """What names stand for in other packages."""
    words: set[str] = field(default_factory=set)
    """Attributes read, keywords and whole strings: whatever may stand for a method."""


@cache
def mentions(module: str, node: Node) -> Mentions:
    """What the code of a definition in `module` refers to; ValueError if it imports from the package."""
    fields = [getattr(part, name, None) for part in parts_of(node) for name in ("annotation", "returns")]
    annotations = [kind for kind in fields if isinstance(kind, ast.expr)]
    types = [part for kind in annotations for part in ast.walk(kind)]
    operands: set[ast.AST] = set()
    if isinstance(tree_of(node), ast.FunctionDef):  # those of a class may be evaluated
        operands = {side for part in types if isinstance(part, ast.BinOp) for side in (part.left, part.right)}
    quoted = [part.value for part in annotations if isinstance(part, ast.Constant)]
    types += [part for text in quoted if isinstance(text, str) for part in ast.walk(ast.parse(text))]
    found = Mentions()
    for part in [*parts_of(node), *types]:
        match part:
            case ast.Name(id=name, ctx=ast.Load()):
                if key := find_definition(module, name):
                    (found.unions if part in operands else found.definitions)[name] = key
                elif (entry := read_module(module).imports.get(name)) and not entry.is_ours:
                    found.imports.update({entry} if name not in bindings(node) else ())
            case ast.Attribute(value=value, attr=name, ctx=context):
                found.words.update({name} if isinstance(context, ast.Load) else ())
                alias = value.id if isinstance(value, ast.Name) else ""
                if (other := find_module(module, alias)) and (key := find_definition(other, name)):
                    found.members[alias, name] = key
            case ast.keyword(arg=str(word)) | ast.Constant(value=str(word)):
                found.words.add(word)
            case ast.Import(names=[ast.alias(name=source), *_]) | ast.ImportFrom(module=str(source)):
                if Import(source, "", "").is_ours:
                    raise ValueError(f"cannot be bundled, since it is inside a function: {ast.unparse(part)}")
    return found
