"""Where train_gpt.py may learn from the validation tokens: what its text shows, and no more.

Names are followed through assignments and calls in the order of the lines. A value is validation
data if it comes from a name such as `val_tokens`, from a file pattern that matches the validation
shards, or from a call that is given "val". The rules are those of REFERENCE.md, section 9: no
training and no calibration on validation data, except test-time training on tokens scored before.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pargolf.submission.sources import Source, aliases, qualified

VALIDATION_NAME = re.compile(
    r"(^|_)val(id|idation)?_?(batch(es)?|chunks?|data(set)?|docs|files?|glob|ids|loader|paths?|pattern|set"
    r"|shards?|split|stream|text|tokens)$"
)
TRAINING_NAME = re.compile(
    r"^(train|training|calib|calibration)(_?(batch(es)?|chunks?|data(set)?|docs|files?|glob|ids|loader"
    r"|paths?|pattern|set|shards?|split|stream|text|tokens))?$"
)
TRAINING_ATTRIBUTE = re.compile(r"^(train|training)(_|$)")
CALIBRATION = re.compile(r"calib|hessian|gptq", re.IGNORECASE)
SHARD = re.compile(r"fineweb_(train|val)")
# Asking for these gives a size, and no tokens.
SIZES = frozenset({"device", "dtype", "ndim", "numel", "shape", "size"})
NO_GRADIENTS = ("no_grad", "inference_mode")
ROUNDS = 8  # of following values into functions; calls rarely nest deeper

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Leaks:
    """What was found, one line each."""

    training: list[str] = field(default_factory=list)
    """Validation data that is given to training or calibration."""
    late: list[str] = field(default_factory=list)
    """Validation tokens scored after training on them."""
    adapting: list[str] = field(default_factory=list)
    """Training on validation tokens that may have been scored before."""
    sees_shards: bool = False
    """Whether the text names the shards it reads at all."""


def find_leaks(source: Source) -> Leaks:
    """Follow the validation data through the code."""
    leaks = Leaks()
    for tree in source.trees:
        _Flow(tree, leaks).run()
    for name in ("training", "late", "adapting"):
        setattr(leaks, name, list(dict.fromkeys(getattr(leaks, name))))
    return leaks


@dataclass(frozen=True)
class Event:
    """Validation tokens are scored, or trained on."""

    kind: Literal["score", "train"]
    line: int


class _Flow:
    """The flow of validation data through one module."""

    def __init__(self, tree: ast.Module, leaks: Leaks):
        self.tree = tree
        self.leaks = leaks
        self.names = aliases(tree)
        self.functions: dict[str, Function] = {
            node.name: node for node in ast.walk(tree) if isinstance(node, Function)
        }
        self.given: dict[str, set[str]] = {name: set() for name in self.functions}  # parameters
        self.events: dict[str, list[Event]] = {name: [] for name in self.functions}
        self.globals: set[str] = set()  # names of the module that hold validation data

    def run(self) -> None:
        """Follow values until no function is given more than before; then note what happens in order."""
        for _ in range(ROUNDS):
            before = (
                {name: set(given) for name, given in self.given.items()},
                dict(self.events),
                self.globals,
            )
            for name, function in self.functions.items():
                tainted = self.globals - set(_parameters(function)) | self.given[name]
                self.events[name] = self._follow(function.body, tainted, _is_frozen(function))
            self.globals = set()
            main = self._follow(self.tree.body, self.globals, False)
            if (self.given, self.events, self.globals) == before:
                break
        for events in [*self.events.values(), main]:
            self._judge(events)

    def _judge(self, events: list[Event]) -> None:
        kinds = [event.kind for event in events]
        if "train" not in kinds:
            return
        first = kinds.index("train")
        late = next((event for event in events[first:] if event.kind != "train"), None)
        trains = f"line {events[first].line} trains on validation tokens"
        if late:
            self.leaks.late.append(f"{trains}, line {late.line} scores them after")
        else:
            self.leaks.adapting.append(trains)

    def _follow(self, body: list[ast.stmt], tainted: set[str], frozen: bool) -> list[Event]:
        """What the statements do, in order; `tainted` are the names that hold validation data."""
        return [event for statement in body for event in self._statement(statement, tainted, frozen)]

    def _statement(self, node: ast.stmt, tainted: set[str], frozen: bool) -> Iterator[Event]:
        if isinstance(node, Function):
            return  # followed on its own
        for value in _expressions(node):
            yield from self._expression(value, tainted, frozen)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            self._assign(node.targets if isinstance(node, ast.Assign) else [node.target], node.value, tainted)
        elif isinstance(node, ast.AugAssign) and self._is_validation(node.value, tainted):
            if frozen:
                yield Event("score", node.lineno)
            tainted |= _names(node.target)
        elif isinstance(node, ast.For | ast.AsyncFor):
            self._assign([node.target], node.iter, tainted)
        elif isinstance(node, ast.If):
            # Only what holds on both ways is certain after them.
            ways = [set(tainted), set(tainted)]
            for block, way in zip((node.body, node.orelse), ways, strict=True):
                yield from self._follow(block, way, frozen)
            tainted.clear()
            tainted |= ways[0] & ways[1]
            return
        elif isinstance(node, ast.With | ast.AsyncWith):
            frozen = frozen or any(
                qualified(item.context_expr.func, self.names).endswith(NO_GRADIENTS)
                for item in node.items
                if isinstance(item.context_expr, ast.Call)
            )
        for inner in _blocks(node):
            yield from self._follow(inner, tainted, frozen)

    def _assign(self, targets: Sequence[ast.expr], value: ast.expr, tainted: set[str]) -> None:
        validation = self._is_validation(value, tainted)
        for target in targets:
            names = _names(target)
            trains = sorted(name for name in names if TRAINING_NAME.match(name.lstrip(".")))
            if validation and trains:
                self.leaks.training.append(
                    f"line {target.lineno} makes {trains[0].lstrip('.')} of validation data"
                )
            elif validation:
                tainted |= names
            else:
                tainted -= names

    def _expression(self, node: ast.expr, tainted: set[str], frozen: bool) -> Iterator[Event]:
        for call in ast.walk(node):
            if isinstance(call, ast.Call):
                yield from self._call(call, tainted, frozen)

    def _call(self, call: ast.Call, tainted: set[str], frozen: bool) -> Iterator[Event]:
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        name = method or (call.func.id if isinstance(call.func, ast.Name) else "")
        for keyword in call.keywords:
            if TRAINING_NAME.match(keyword.arg or "") and self._is_validation(keyword.value, tainted):
                self.leaks.training.append(f"line {call.lineno} gives validation data as {keyword.arg}")
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        if name == "backward" and isinstance(call.func, ast.Attribute):
            arguments.append(call.func.value)  # loss.backward()
        if not any(self._is_validation(argument, tainted) for argument in arguments):
            return
        if name == "backward" or qualified(call.func, self.names) == "torch.autograd.grad":
            yield Event("train", call.lineno)
        elif CALIBRATION.search(name):
            self.leaks.training.append(f"line {call.lineno} calls {name} with validation data")
        elif name in self.functions:
            self._give(call, self.functions[name], tainted)
            yield from self._inside(name, call.lineno)
        elif frozen and name in ("append", "add_"):
            yield Event("score", call.lineno)

    def _give(self, call: ast.Call, function: Function, tainted: set[str]) -> None:
        """Note which parameters of a function receive validation data."""
        parameters = [name for name in _parameters(function) if name != "self"]
        pairs = [*zip(parameters, call.args, strict=False), *((k.arg, k.value) for k in call.keywords)]
        self.given[function.name] |= {
            name for name, value in pairs if name and self._is_validation(value, tainted)
        }

    def _inside(self, name: str, line: int) -> list[Event]:
        """What a called function does, as its caller sees it: at the line of the call."""
        kinds = {event.kind for event in self.events[name]}
        # One that does both is judged for itself, and for its caller scores.
        if not kinds:
            return []
        return [Event("train" if kinds == {"train"} else "score", line)]

    def _is_validation(self, node: ast.expr, tainted: set[str]) -> bool:
        """Whether any part of an expression holds validation tokens, or says where they are."""
        if isinstance(node, ast.Name):
            return node.id in tainted or bool(VALIDATION_NAME.search(node.id))
        if isinstance(node, ast.Attribute):
            if node.attr in SIZES or TRAINING_ATTRIBUTE.match(node.attr):
                return False
            named = "." + node.attr in tainted or VALIDATION_NAME.search(node.attr)
            return bool(named) or self._is_validation(node.value, tainted)
        if isinstance(node, ast.Constant):
            return isinstance(node.value, str) and self._is_validation_file(node.value)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "len":
                return False
            split = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            self.leaks.sees_shards |= "train" in split
            if {"val", "valid", "validation"} & set(split):
                return True
        return any(
            self._is_validation(child, tainted)
            for part in ast.iter_child_nodes(node)
            for child in ([part] if isinstance(part, ast.expr) else ast.iter_child_nodes(part))
            if isinstance(child, ast.expr)
        )

    def _is_validation_file(self, text: str) -> bool:
        """Whether a file pattern matches the validation shards, alone or beside the training shards."""
        self.leaks.sees_shards |= bool(SHARD.search(text))
        return bool(re.search(r"fineweb_(val|\*)|fineweb\*", text))


def _parameters(function: Function) -> list[str]:
    return [p.arg for p in (*function.args.posonlyargs, *function.args.args)]


def _is_frozen(function: Function) -> bool:
    """Whether a decorator keeps gradients off."""
    decorators = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    return any(qualified(d, {}).endswith(NO_GRADIENTS) for d in decorators)


def _expressions(node: ast.stmt) -> list[ast.expr]:
    """The expressions of a statement itself, without those of the statements inside it."""
    found = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    if isinstance(node, ast.With | ast.AsyncWith):
        found += [item.context_expr for item in node.items]
    return found


def _blocks(node: ast.stmt) -> list[list[ast.stmt]]:
    """The blocks of statements inside a statement, in the order of the lines."""
    blocks = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
    blocks += [handler.body for handler in getattr(node, "handlers", [])]
    blocks += [case.body for case in getattr(node, "cases", [])]
    return [block for block in blocks if block]


def _names(target: ast.expr) -> set[str]:
    """The names that an assignment binds; attributes with a dot before them."""
    if isinstance(target, ast.Tuple | ast.List):
        return {name for element in target.elts for name in _names(element)}
    if isinstance(target, ast.Starred | ast.Subscript):
        return _names(target.value)
    if isinstance(target, ast.Attribute):
        return {"." + target.attr}
    return {target.id} if isinstance(target, ast.Name) else set()
