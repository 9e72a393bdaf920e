"""What is known of a program before it runs, and what its expressions come to with that.

Only facts that hold for every run are used:
- a setting that no environment variable changes and that is not "auto" (the script refuses an
  artifact of other settings, so this goes for those read from one, too);
- an argument that every call of a function gives the same constant, or leaves at its default;
- an attribute that one assignment alone sets, to a constant;
- a parameter annotated `X | None` whose class X nothing makes: it is None.
"""

import ast
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pargolf.bundle.modules import Key, Node, find_definition, mentions, parts_of, tree_of
from pargolf.config.schema import RunConfig

# Class of settings -> its section: {"ModelConfig": "model", ...}.
SECTIONS = {hint.__name__: name for name, hint in get_type_hints(RunConfig).items() if hint is not str}
COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Unknown(Exception):
    """A value depends on the run."""


@dataclass(frozen=True)
class Settings:
    """The frozen configuration, and which of its settings a run may still change."""

    config: RunConfig
    changeable: frozenset[tuple[str, str]]
    """(section, name) of those."""

    def value(self, section: str, name: str) -> Any:
        """The setting's value in every run; Unknown if it may vary."""
        part = getattr(self.config, section)
        value, is_property = getattr(part, name), isinstance(getattr(type(part), name, None), property)
        if (section, name) in self.changeable or value == "auto" or is_property:
            raise Unknown
        return value

    def choice(self, words: set[Any]) -> Any:
        """The value of the setting that chooses among exactly these words; Unknown if there is none.

        "auto" is no choice of its own.
        """
        if not all(isinstance(word, str) for word in words):
            raise Unknown
        for section in SECTIONS.values():
            for name, hint in get_type_hints(type(getattr(self.config, section))).items():
                if get_origin(hint) is Literal and set(get_args(hint)) - {"auto"} == words - {"auto"}:
                    return self.value(section, name)
        raise Unknown


@dataclass(frozen=True)
class Known:
    """What is known of a program whose live definitions are `live`; `learn` finds it out."""

    settings: Settings
    live: Mapping[Key, Node]
    arguments: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)
    """Constant parameters of functions and constructors."""
    attributes: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)
    """Constant attributes of `self`, by class."""
    holders: Mapping[str, str] = field(default_factory=dict)
    """Attribute that always holds settings -> their class."""
    unused: Mapping[Key, frozenset[str]] = field(default_factory=dict)
    """Parameters that can be left out, of their function and of its calls."""
    unread: frozenset[str] = frozenset()
    """Attributes that are assigned constants and never read."""
    words: frozenset[str] = frozenset()
    """Every string of the program but the keys of its dictionaries."""

    def is_absent(self, module: str, name: str) -> bool:
        """True if `name` is a class of the package of which the program makes no instance."""
        key = find_definition(module, name)
        return key is not None and key not in self.live

    def is_never_given(self, module: str, annotation: ast.expr | None) -> bool:
        """True for a parameter annotated `X | None` where the program makes no X."""
        match annotation:
            case ast.BinOp(left=ast.Name(id=name), op=ast.BitOr(), right=ast.Constant(value=None)):
                return self.is_absent(module, name)
        return False


@dataclass
class Scope:
    """What is known inside one definition."""

    known: Known
    key: Key
    types: dict[str, str] = field(default_factory=dict)
    """Variable -> its class of settings."""
    values: dict[str, Any] = field(default_factory=dict)
    """Variable -> its constant value."""

    def section(self, node: ast.expr) -> str:
        """The class of settings that an expression is one of; "" if it is none."""
        match node:
            case ast.Name(id=name):
                return self.types.get(name, "")
            case ast.Attribute(value=value, attr=name) if self.section(value) == "RunConfig":
                return next((kind for kind, section in SECTIONS.items() if section == name), "")
            case ast.Attribute(attr=name):
                return self.known.holders.get(name, "")
        return ""

    def evaluate(self, node: ast.expr) -> Any:
        """The constant value of an expression; raises Unknown if it has none."""
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name) if name in self.values:
                return self.values[name]
            case ast.Attribute(value=value, attr=name):
                if section := SECTIONS.get(self.section(value)):
                    return self.known.settings.value(section, name)
                constants = self.known.attributes.get(self.key[:2], {})
                if isinstance(value, ast.Name) and value.id == "self" and name in constants:
                    return constants[name]
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self.evaluate(operand)
            case ast.BoolOp(op=op, values=parts):
                for part in parts:  # what decides may not follow on something unknown
                    value = self.evaluate(part)
                    if bool(value) is isinstance(op, ast.Or):
                        break
                return value
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return COMPARE[type(op)](self.evaluate(left), self.evaluate(right))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.evaluate(body if self.evaluate(test) else orelse)
            case ast.Tuple(elts=parts) | ast.Set(elts=parts):
                return tuple(map(self.evaluate, parts))
        raise Unknown

    def knows(self, node: ast.expr) -> bool:
        """True if `node` has a constant value."""
        try:
            self.evaluate(node)
        except Unknown:
            return False
        return True


def scope_of(key: Key, node: Node, known: Known) -> Scope:
    """What is known inside the definition `key`, whose current form is `node`."""
    scope = Scope(known, key)
    once = {name for name, count in _bindings(node).items() if count == 1}
    for parameter in parameters(node):
        if parameter.arg in once:
            match parameter.annotation:
                case ast.Name(id=name) if name in SECTIONS or name == "RunConfig":
                    scope.types[parameter.arg] = name
                case annotation if known.is_never_given(key[0], annotation):
                    scope.values[parameter.arg] = None
    given = known.arguments.get(key, {})
    scope.values |= {name: value for name, value in given.items() if name in once}
    for target, value in assignments(node):
        if isinstance(target, ast.Name) and target.id in once:
            if section := scope.section(value):
                scope.types[target.id] = section
            elif scope.knows(value):
                scope.values[target.id] = scope.evaluate(value)
    return scope


@cache
def parameters(node: Node) -> tuple[ast.arg, ...]:
    """The parameters of a function or method in the order of its arguments, without self."""
    tree = tree_of(node)
    if not isinstance(tree, ast.FunctionDef):
        return ()
    found = [*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs]
    return tuple(parameter for parameter in found if parameter.arg != "self")


@cache
def assignments(node: Node) -> tuple[tuple[ast.expr, ast.expr], ...]:
    """Every (target, value) of plain assignments in a definition, those of tuples taken apart."""
    return tuple(_assignments(node))


def _assignments(node: Node) -> Iterator[tuple[ast.expr, ast.expr]]:
    for part in parts_of(node):
        match part:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                if len(targets) == len(values):
                    yield from zip(targets, values, strict=True)
            case ast.Assign(targets=[target], value=value):
                yield target, value
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                yield target, value


@cache
def _bindings(node: Node) -> Counter[str]:
    """How often each name is bound inside a definition."""
    counts = Counter(
        part.id if isinstance(part, ast.Name) else part.arg
        for part in parts_of(node)
        if isinstance(part, ast.arg) or (isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store))
    )
    # Bound by `def`, `import` or `except`: not by any assignment that could be looked at.
    counts.update({name: 2 for name in mentions(node).bound if name not in counts})
    return counts
