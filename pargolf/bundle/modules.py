"""The package's modules, taken apart into definitions, and what the code of each one mentions.

Modules go by their dotted names. A definition (function, class or constant) has the key
(module, name); a method has (module, class, method), and is kept apart from its class.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
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
            case cst.SimpleStatementLine(
                [cst.Assign([cst.AssignTarget(cst.Name(target))]) | cst.AnnAssign(cst.Name(target))]
            ):
                nodes[name, target] = statement
            case cst.FunctionDef(cst.Name(function)):
                nodes[name, function] = statement
            case cst.ClassDef(cst.Name(class_)):
                body = statement.body.body
                methods = {part.name.value: part for part in body if isinstance(part, cst.FunctionDef)}
                rest = [part for part in body if not isinstance(part, cst.FunctionDef)]
                nodes[name, class_] = statement.with_changes(body=statement.body.with_changes(body=rest))
                nodes |= {(name, class_, method): node for method, node in methods.items()}
            case cst.If(test) if tree.code_for_node(test) in NOT_RUN:
                pass
            case _ if index:  # 0 is the docstring
                raise ValueError(f"{name} cannot be bundled, for: {tree.code_for_node(statement).strip()}")
    return Module(tree.get_docstring() or "", nodes, imports)


def _imports(statement: cst.Import | cst.ImportFrom) -> Iterator[Import]:
    module = ""
    if isinstance(statement, cst.ImportFrom) and statement.module:
        module = get_full_name_for_node_or_raise(statement.module)
    for entry in statement.names if not isinstance(statement.names, cst.ImportStar) else ():
        name, alias = get_full_name_for_node_or_raise(entry.name), entry.evaluated_alias or ""
        yield Import(module, name, alias) if module else Import(name, "", alias)


def find_module(module: str, name: str) -> str:
    """The module of the package that `name` stands for inside `module`; "" if it stands for none."""
    entry = read_module(module).imports.get(name)
    if entry is None or entry.module.partition(".")[0] != PACKAGE or not entry.name:
        return ""
    full = f"{entry.module}.{entry.name}"
    return full if _is_package(entry.module) and find_spec(full) else ""


@cache
def _is_package(name: str) -> bool:
    spec = find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


def find_definition(module: str, name: str) -> Key | None:
    """The key of what `name` stands for inside `module`; None if it is not defined in the package."""
    source = read_module(module)
    if (module, name) in source.nodes:
        return module, name
    entry = source.imports.get(name)
    if entry is None or entry.module.partition(".")[0] != PACKAGE or find_module(module, name):
        return None
    return find_definition(entry.module, entry.name)


def find_import(module: str, name: str) -> Import | None:
    """The import of another package that `name` stands for inside `module`, if it does."""
    entry = read_module(module).imports.get(name)
    return entry if entry and entry.module.partition(".")[0] != PACKAGE else None


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
    """Every part of a definition's syntax tree but for annotations, which nothing evaluates."""
    return tuple(_walk(tree_of(node)))


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    yield tree
    for name, value in ast.iter_fields(tree):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _walk(child)


class Mentions(ast.NodeVisitor):
    """What a definition reads and binds. Annotations count apart, since nothing evaluates them."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        """Names read."""
        self.annotations: set[str] = set()
        """Names in annotations, but for the operands of unions."""
        self.unions: set[str] = set()
        """Operands of unions in annotations: classes of values that may never occur."""
        self.members: set[tuple[str, str]] = set()
        """(name, attribute) of every NAME.ATTRIBUTE."""
        self.words: set[str] = set()
        """Attributes read, keywords and whole strings: whatever may stand for a method or a field."""
        self.bound: set[str] = set()
        """Names bound anywhere inside, parameters included."""

    def annotation(self, node: ast.expr | None) -> None:
        """Read a type: unions apart from the rest; quoted ones are left alone."""
        parts = list(ast.walk(node)) if node else []
        operands = [x for part in parts if isinstance(part, ast.BinOp) for x in (part.left, part.right)]
        self.unions |= {part.id for part in operands if isinstance(part, ast.Name)}
        self.annotations |= {p.id for p in parts if isinstance(p, ast.Name) and p not in operands}

    def signature(self, node: ast.FunctionDef) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
        self.visit(node.args)
        self.annotation(node.returns)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.bound.add(node.name)
        self.signature(node)
        for statement in node.body:
            self.visit(statement)

    def visit_arg(self, node: ast.arg) -> None:
        self.bound.add(node.arg)
        self.annotation(node.annotation)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        self.annotation(node.annotation)
        if node.value:
            self.visit(node.value)

    def visit_Name(self, node: ast.Name) -> None:
        (self.names if isinstance(node.ctx, ast.Load) else self.bound).add(node.id)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        source = ast.unparse(node)
        if source.split()[1].partition(".")[0] == PACKAGE:
            raise ValueError(f"cannot be bundled, since it is inside a function: {source}")
        self.bound |= {(name.asname or name.name).partition(".")[0] for name in node.names}

    visit_ImportFrom = visit_Import

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.bound |= {node.name} if node.name else set()
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self.words.add(node.attr)
        if isinstance(node.value, ast.Name):
            self.members.add((node.value.id, node.attr))
        self.visit(node.value)

    def visit_keyword(self, node: ast.keyword) -> None:
        self.words |= {node.arg} if node.arg else set()
        self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring says nothing to the program
            self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        self.words |= {node.value} if isinstance(node.value, str) else set()


@cache
def mentions(node: Node) -> Mentions:
    """What the code of a definition mentions."""
    found = Mentions()
    tree = tree_of(node)
    if isinstance(tree, ast.FunctionDef):
        found.signature(tree)
        for statement in tree.body:
            found.visit(statement)
    else:
        found.visit(tree)
    return found
