"""What is the same in every run of a program: frozen settings, and None for what nothing makes.

Two things are taken for granted:
- annotations are true (mypy holds them): `c.q_rank` is a setting where `c: ModelConfig` is a parameter,
  a variable, a field, or what a method assigns to `self.c`;
- a program has no settings but its own, whoever hands them on. The script refuses an artifact of others.
"""

import ast
import operator
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pargolf.bundle.modules import (
    Key,
    Node,
    bindings,
    find_definition,
    is_made,
    own_parts,
    parts_of,
    read_module,
    tree_of,
)
from pargolf.config.schema import RunConfig

# (module, class, field) of a setting that no environment variable changes -> its value, which may be "auto"
Frozen = Mapping[Key, Any]

COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Is: operator.is_, ast.IsNot: operator.is_not,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip


class Unknown(Exception):
    """A value depends on the run."""


def sections() -> dict[str, type]:
    """The parts of a run's settings: section -> its class."""
    return {name: hint for name, hint in get_type_hints(RunConfig).items() if hint is not str}


def freeze(config: RunConfig, changeable: Collection[str] = ()) -> Frozen:
    """The settings of `config` without those whose "section.name" is `changeable`."""
    return {
        (kind.__module__, kind.__name__, entry.name): getattr(getattr(config, section), entry.name)
        for section, kind in sections().items()
        for entry in fields(kind)
        if f"{section}.{entry.name}" not in changeable
    }


def choices_of(frozen: Frozen) -> list[set[str]]:
    """The words, "auto" left out, among which settings choose that are all frozen."""
    settings: dict[frozenset[Any], set[Key]] = defaultdict(set)
    for kind in sections().values():
        for name, hint in get_type_hints(kind).items():
            if get_origin(hint) is Literal and isinstance(get_args(hint)[0], str):
                settings[frozenset(get_args(hint)) - {"auto"}].add((kind.__module__, kind.__name__, name))
    return [set(words) for words, keys in settings.items() if keys <= frozen.keys()]


@dataclass(frozen=True)
class Scope:
    """What is known inside one definition of the program `live`."""

    module: str
    live: Mapping[Key, Node]
    frozen: Frozen
    types: dict[str, Key] = field(default_factory=dict)
    """Variable -> its class."""
    values: dict[str, Any] = field(default_factory=dict)
    """Variable -> its value."""

    def is_absent(self, name: str) -> bool:
        """True for a class of the package of which the program makes no instance."""
        key = find_definition(self.module, name)
        return key is not None and key not in self.live and is_made(key)

    def is_nothing(self, annotation: ast.expr | None) -> bool:
        """True for the types None, and `X | None` where the program makes no X."""
        match annotation:
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return self.is_nothing(left) and self.is_nothing(right)
            case ast.Name(id=name):
                return self.is_absent(name)
        return isinstance(annotation, ast.Constant) and annotation.value is None

    def type_of(self, node: ast.AST | None) -> Key | None:
        """The class of an expression's value, if it is one of the package and known."""
        match node:
            case ast.Name(id=name):
                return self.types.get(name)
            case ast.Attribute(value=value, attr=name) if kind := self.type_of(value):
                return attributes_of(kind).get(name)
        return None

    def evaluate(self, node: ast.expr) -> Any:
        """The value of an expression in every run; raises Unknown if it may vary.

        `and` and `or` are no business of this: the first operand that is known takes them apart.
        """
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name) if name in self.values:
                return self.values[name]
            case ast.Attribute(value=owner, attr=name) if kind := self.type_of(owner):
                value = self.frozen.get((*kind, name), "auto")
                if value != "auto":
                    return value
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self.evaluate(operand)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                try:
                    return COMPARE[type(op)](self.evaluate(left), self.evaluate(right))
                except TypeError:  # in a branch that no run takes
                    raise Unknown from None
            case ast.Tuple(elts=parts) | ast.Set(elts=parts):
                return tuple(map(self.evaluate, parts))
        raise Unknown

    def knows(self, node: ast.expr) -> bool:
        """True if `node` has the same value in every run."""
        try:
            self.evaluate(node)
        except Unknown:
            return False
        return True


def scope_of(key: Key, node: Node, live: Mapping[Key, Node], frozen: Frozen) -> Scope:
    """What is known inside the definition `key`, whose current form is `node`."""
    scope = Scope(key[0], live, frozen, types_of_parameters(key, node))
    scope.values.update({p.arg: None for p in parameters(node) if scope.is_nothing(p.annotation)})
    for target, value, annotation in assignments(node):
        if isinstance(target, ast.Name) and bindings(node)[target.id] == 1:
            if kind := class_of(key[0], annotation) or scope.type_of(value):
                scope.types[target.id] = kind
            elif scope.knows(value):
                scope.values[target.id] = scope.evaluate(value)
    return scope


def parameters(node: Node) -> list[ast.arg]:
    """The parameters that a function binds to nothing else; none of any other definition."""
    tree = tree_of(node)
    if not isinstance(tree, ast.FunctionDef):
        return []
    a = tree.args
    return [p for p in (*a.posonlyargs, *a.args, *a.kwonlyargs) if bindings(node)[p.arg] == 1]


def types_of_parameters(key: Key, node: Node) -> dict[str, Key]:
    """The classes of self, and of the parameters that are annotated with one of the package."""
    kinds = {p.arg: key[:2] if p.arg == "self" else class_of(key[0], p.annotation) for p in parameters(node)}
    return {name: kind for name, kind in kinds.items() if kind}


def class_of(module: str, annotation: ast.expr | None) -> Key | None:
    """The class of the package that an annotation names."""
    key = find_definition(module, annotation.id) if isinstance(annotation, ast.Name) else None
    return key if key and isinstance(tree_of(read_module(key[0]).nodes[key]), ast.ClassDef) else None


@cache
def attributes_of(owner: Key) -> dict[str, Key]:
    """Attribute -> the class that it is annotated with, or that of all that methods assign to it."""
    kinds: dict[str, set[Key | None]] = defaultdict(set)
    for key, node in read_module(owner[0]).nodes.items():
        if key[:2] != owner:
            continue
        types = types_of_parameters(key, node)
        is_method = types.pop("self", None) is not None
        given = {target: value for target, value, _ in assignments(node)}
        for part in parts_of(node):
            match part:
                case ast.AnnAssign(target=ast.Name(id=name), annotation=kind) if key == owner:
                    kinds[name].add(class_of(owner[0], kind))
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store() | ast.Del()):
                    scope = Scope(owner[0], {}, {}, types)
                    kinds[name].add(scope.type_of(given.get(part)) if is_method else None)
    return {name: kind for name, (kind, *others) in kinds.items() if kind and not others}


@cache
def assignments(node: Node) -> list[tuple[ast.expr, ast.expr, ast.expr | None]]:
    """(target, value, annotation) of the plain assignments of a definition, those of tuples taken apart."""
    found: list[tuple[ast.expr, ast.expr, ast.expr | None]] = []
    for part in own_parts(node):
        match part:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                if len(targets) == len(values):
                    found += [(target, value, None) for target, value in zip(targets, values, strict=True)]
            case ast.Assign(targets=[target], value=value):
                found.append((target, value, None))
            case ast.AnnAssign(target=target, value=ast.expr() as value, annotation=annotation):
                found.append((target, value, annotation))
    return found
