"""Finding out what is constant, and what is superfluous, in a program as it stands."""

import ast
import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import libcst as cst

from pargolf.bundle.known import SECTIONS, Known, Scope, Settings, assignments, parameters, scope_of
from pargolf.bundle.modules import Key, Node, find_definition, find_module, mentions, parts_of, tree_of

Program = Mapping[Key, Node]


def learn(live: Program, settings: Settings, before: Known | None) -> Known:
    """What is known of the program `live`, given what was known `before` its last change."""
    known = dataclasses.replace(before or Known(settings, live), live=live)
    scopes = {key: scope_of(key, node, known) for key, node in live.items()}
    arguments, unused = _arguments(live, scopes)
    attributes, unread = _attributes(live, scopes)
    return Known(
        settings,
        live,
        arguments,
        attributes,
        _holders(live, scopes),
        unused | _passed_on(live, known),
        unread,
        _words(live),
    )


def callee_of(module: str, function: ast.expr, live: Program) -> Key | None:
    """The live function, or constructor of a class, that `function` names inside `module`."""
    key = None
    match function:
        case ast.Name(id=name):
            key = find_definition(module, name)
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if submodule := find_module(module, name):
            key = find_definition(submodule, attribute)
    if key is None:
        return None
    constructor = (*key, "__init__")
    if constructor in live:
        return constructor
    return key if isinstance(live.get(key), cst.FunctionDef) else None


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call: where it stands, and its arguments by the names of their parameters."""

    scope: Scope
    arguments: Mapping[str, ast.expr]


def _calls(live: Program, scopes: Mapping[Key, Scope]) -> dict[Key, list[_Call]]:
    """Every call of the functions and constructors that are only ever called, and in plain sight.

    One that is also used as a value, or called with * or **, may get arguments that are not seen.
    """
    calls: dict[Key, list[_Call]] = {}
    hidden: set[Key] = set()
    for key, node in live.items():
        seen: set[ast.AST] = set()  # names of what is called, and of classes in isinstance
        for part in parts_of(node):
            if isinstance(part, ast.Call):
                seen |= {part.func, *(part.args if ast.unparse(part.func) == "isinstance" else ())}
                if callee := callee_of(key[0], part.func, live):
                    names = [parameter.arg for parameter in parameters(live[callee])]
                    given = dict(zip(names, part.args, strict=False))
                    given |= {keyword.arg: keyword.value for keyword in part.keywords if keyword.arg}
                    calls.setdefault(callee, []).append(_Call(scopes[key], _defaults(live[callee]) | given))
                    starred = any(isinstance(argument, ast.Starred) for argument in part.args)
                    if starred or any(keyword.arg is None for keyword in part.keywords):
                        hidden.add(callee)
        for part in parts_of(node):
            if isinstance(part, ast.Name | ast.Attribute) and part not in seen:
                hidden |= {callee for callee in [callee_of(key[0], part, live)] if callee}
    return {callee: found for callee, found in calls.items() if callee not in hidden}


def _defaults(node: Node) -> dict[str, ast.expr]:
    tree = tree_of(node)
    assert isinstance(tree, ast.FunctionDef)
    positional = [*tree.args.posonlyargs, *tree.args.args][::-1]
    pairs = [*zip(positional, tree.args.defaults[::-1], strict=False)]
    pairs += [(p, v) for p, v in zip(tree.args.kwonlyargs, tree.args.kw_defaults, strict=True) if v]
    return {parameter.arg: value for parameter, value in pairs}


def _arguments(
    live: Program, scopes: Mapping[Key, Scope]
) -> tuple[dict[Key, dict[str, Any]], dict[Key, frozenset[str]]]:
    """Parameters that are always given the same constant, and parameters that nothing reads."""
    constant: dict[Key, dict[str, Any]] = {}
    unused: dict[Key, set[str]] = {}
    for callee, calls in _calls(live, scopes).items():
        for name in (parameter.arg for parameter in parameters(live[callee])):
            given = [(call.scope, call.arguments[name]) for call in calls if name in call.arguments]
            if len(given) < len(calls):  # *args
                continue
            if all(scope.knows(value) for scope, value in given):
                values = {repr(scope.evaluate(value)): scope.evaluate(value) for scope, value in given}
                if len(values) == 1:
                    constant.setdefault(callee, {})[name] = next(iter(values.values()))
            if name not in mentions(live[callee]).names and all(_is_idle(value) for _, value in given):
                unused.setdefault(callee, set()).add(name)
    return constant, {callee: frozenset(names) for callee, names in unused.items()}


def _is_idle(node: ast.expr) -> bool:
    """True for expressions that do nothing but look up a name or an attribute."""
    return isinstance(node, ast.Name | ast.Constant) or (
        isinstance(node, ast.Attribute) and _is_idle(node.value)
    )


def _attributes(
    live: Program, scopes: Mapping[Key, Scope]
) -> tuple[dict[Key, dict[str, Any]], frozenset[str]]:
    """Constant attributes by class, and those of them that nothing reads."""
    stores: Counter[str] = Counter()
    reads: set[str] = set()
    for key, node in live.items():
        for part in parts_of(node):
            match part:
                case ast.Attribute(attr=name, ctx=ast.Store() | ast.Del()):
                    stores[name] += 1
                case ast.Attribute(value=value, attr=name) if not scopes[key].section(value):
                    reads.add(name)
                case ast.Constant(value=str() as text):  # getattr(x, "name")
                    reads.add(text)
    constant: dict[Key, dict[str, Any]] = {}
    for key, node in live.items():
        for target, value in assignments(node):
            match target:
                case ast.Attribute(value=ast.Name(id="self"), attr=name) if stores[name] == 1:
                    if scopes[key].knows(value):
                        constant.setdefault(key[:2], {})[name] = scopes[key].evaluate(value)
    names = {name for attributes in constant.values() for name in attributes}
    return constant, frozenset(names - reads)


def _holders(live: Program, scopes: Mapping[Key, Scope]) -> dict[str, str]:
    """Attributes that hold settings of one class, whatever object of the program has them."""
    kinds: dict[str, set[str]] = {key[2]: {""} for key in live if len(key) == 3}  # methods
    for key, node in live.items():
        for part in parts_of(node):
            match part:
                case ast.AnnAssign(target=ast.Name(id=name), annotation=kind) if isinstance(
                    node, cst.ClassDef
                ):
                    found = kind.id if isinstance(kind, ast.Name) and kind.id in SECTIONS else ""
                    kinds.setdefault(name, set()).add(found)
                case ast.Attribute(attr=name, ctx=ast.Store()):
                    values = [value for target, value in assignments(node) if target is part]
                    kinds.setdefault(name, set()).add(scopes[key].section(values[0]) if values else "")
    return {name: next(iter(found)) for name, found in kinds.items() if len(found) == 1 and found != {""}}


def _passed_on(live: Program, known: Known) -> dict[Key, frozenset[str]]:
    """Parameters for instances of classes that nothing makes, once all do nothing but be passed on."""
    by_class: dict[str, list[tuple[Key, str, bool]]] = {}
    for key, node in live.items():
        calls = [part for part in parts_of(node) if isinstance(part, ast.Call)]
        given = {value for call in calls for value in (*call.args, *(k.value for k in call.keywords))}
        for parameter in parameters(node):
            if known.is_never_given(key[0], parameter.annotation) and parameter.annotation:
                uses = {x for x in parts_of(node) if isinstance(x, ast.Name) and x.id == parameter.arg}
                members = by_class.setdefault(ast.unparse(parameter.annotation), [])
                members.append((key, parameter.arg, uses <= given))
    unused: dict[Key, set[str]] = {}
    for members in by_class.values():
        if all(idle for _, _, idle in members):
            for key, name, _ in members:
                unused.setdefault(key, set()).add(name)
    return {key: frozenset(names) for key, names in unused.items()}


def _words(live: Program) -> frozenset[str]:
    words: set[str] = set()
    for node in live.values():
        keys = {k for part in parts_of(node) if isinstance(part, ast.Dict) for k in part.keys}
        words |= {
            part.value
            for part in parts_of(node)
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and part not in keys
        }
    return frozenset(words)
