"""Where train_gpt.py may learn from the validation tokens: what its text shows, and no more.

Names are followed through assignments and calls in the order of the lines. A value is validation
data if it comes from a name such as `val_tokens`, from a file pattern that matches the validation
shards, or from a call that is given "val". The challenge's rules: no training and no calibration on
validation data, except test-time training on tokens scored before.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pargolf.check.sources import Source, aliases, qualified, strings

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
SCORING_NAME = re.compile(r"(^|_)(eval|evaluate|score|test|validate)(_|$)", re.IGNORECASE)
SHARD = re.compile(r"fineweb_(train|val)")
# Asking for these gives a size, and no tokens.
SIZES = frozenset({"device", "dtype", "ndim", "numel", "shape", "size"})
NO_GRADIENTS = ("no_grad", "inference_mode")
ROUNDS = 8  # of following values into functions; calls rarely nest deeper

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Leaks:
    """What was found, one line each: certain, or under a condition or otherwise only likely."""

    training: list[str] = field(default_factory=list)
    """Validation data is given to training or calibration."""
    perhaps_training: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """Validation tokens are scored after training on them."""
    perhaps_late: list[str] = field(default_factory=list)
    sees_shards: bool = False
    """Whether the text names the shards it reads at all."""


def find_leaks(source: Source) -> Leaks:
    """Follow the validation data through the code."""
    leaks = Leaks()
    for tree in source.trees:
        _Flow(tree, leaks).run()
    for name in ("training", "perhaps_training", "late", "perhaps_late"):
        setattr(leaks, name, list(dict.fromkeys(getattr(leaks, name))))
    return leaks


@dataclass(frozen=True)
class Event:
    """Validation tokens are scored, or trained on."""

    kind: Literal["score", "train"]
    line: int
    loops: frozenset[int]
    """Of the loops around it."""
    conditional: bool
    tokens: frozenset[str] = frozenset()
    """What a function that does it is given by a plain name: all of the tokens, not a part."""


class _Flow:
    """The flow of validation data through one module."""

    def __init__(self, tree: ast.Module, leaks: Leaks):
        self.tree = tree
        self.leaks = leaks
        self.names = aliases(tree)
        self.functions: dict[str, Function] = {
            node.name: node for node in ast.walk(tree) if isinstance(node, Function)
        }
        # Minified code gives a name to a text that it uses twice.
        self.texts: dict[str, str] = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name) and isinstance(node.value.value, str)
        }
        self.given: dict[str, set[str]] = {name: set() for name in self.functions}  # parameters
        self.events: dict[str, list[Event]] = {name: [] for name in self.functions}
        self.returns: set[str] = set()  # functions whose result holds validation data
        self.globals: set[str] = set()  # names of the module that hold validation data
        # Where the statement that is followed lies:
        self.inside = ""  # in this function
        self.loops: list[int] = []
        self.epochs: set[int] = set()  # loops that go over the same tokens again
        self.conditions = 0

    def run(self) -> None:
        """Follow values until no function is given more than before; then note what happens in order."""
        for _ in range(ROUNDS):
            before = (
                {name: set(given) for name, given in self.given.items()},
                dict(self.events),
                set(self.returns),
                self.globals,
            )
            for name, function in self.functions.items():
                self.inside = name
                tainted = self.globals - set(_parameters(function)) | self.given[name]
                self.events[name] = self._follow(function.body, tainted, _is_frozen(function))
            self.inside, self.globals = "", set()
            main = self._follow(self.tree.body, self.globals, False)
            if (self.given, self.events, self.returns, self.globals) == before:
                break
        for events in [*self.events.values(), main]:
            self._judge(events)

    def _judge(self, events: list[Event]) -> None:
        """Training is late if the same tokens, all of them, are scored after it and not in its loop.

        In a loop of epochs they are: the second epoch scores what the first trained on.
        """
        for n, trained in enumerate(events):
            if trained.kind != "train":
                continue
            text = f"line {trained.line} trains on validation tokens"
            again = [
                event
                for event in events
                if event.kind == "score" and event.loops & trained.loops & self.epochs
            ]
            if again and not trained.conditional and not again[0].conditional:
                self.leaks.late.append(f"{text}, line {again[0].line} scores them again in each epoch")
                continue
            late = [
                f"{text}, line {event.line} scores them after"
                for event in events[n + 1 :]
                if event.kind == "score" and event.tokens & trained.tokens and not event.loops & trained.loops
            ]
            if late and not trained.conditional:
                self.leaks.late.append(late[0])
            else:
                self.leaks.perhaps_late.append(late[0] if late else text)

    def _event(self, kind: Literal["score", "train"], line: int, tokens: Iterable[str] = ()) -> Event:
        return Event(kind, line, frozenset(self.loops), self.conditions > 0, frozenset(tokens))

    def _training(self, line: int, what: str) -> None:
        leaks = self.leaks.perhaps_training if self.conditions else self.leaks.training
        leaks.append(f"line {line} {what}")

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
            if frozen:  # a sum of losses, and no tokens any more
                yield self._event("score", node.lineno)
            else:
                tainted |= _names(node.target)
        elif isinstance(node, ast.Return) and node.value and self._is_validation(node.value, tainted):
            self.returns.add(self.inside)
        elif isinstance(node, ast.For | ast.AsyncFor):
            self._assign([node.target], node.iter, tainted)
        elif isinstance(node, ast.If):
            # Only what holds on both ways is certain after them.
            ways = [set(tainted), set(tainted)]
            self.conditions += 1
            for block, way in zip((node.body, node.orelse), ways, strict=True):
                yield from self._follow(block, way, frozen)
            self.conditions -= 1
            tainted.clear()
            tainted |= ways[0] & ways[1]
            return
        elif isinstance(node, ast.With | ast.AsyncWith):
            frozen = frozen or any(
                qualified(item.context_expr.func, self.names).endswith(NO_GRADIENTS)
                for item in node.items
                if isinstance(item.context_expr, ast.Call)
            )
        looping = isinstance(node, ast.For | ast.AsyncFor | ast.While)
        if looping:
            self.loops.append(id(node))
            if isinstance(node, ast.For) and any("epoch" in name for name in _words(node)):
                self.epochs.add(id(node))
        for inner in _blocks(node):
            yield from self._follow(inner, tainted, frozen)
        if looping:
            self.loops.pop()

    def _assign(self, targets: Sequence[ast.expr], value: ast.expr, tainted: set[str]) -> None:
        for target in targets:
            if isinstance(target, ast.Tuple | ast.List):
                parts = value.elts if isinstance(value, ast.Tuple | ast.List) else []
                pairwise = len(parts) == len(target.elts)
                for n, element in enumerate(target.elts):
                    self._bind(element, parts[n] if pairwise else value, tainted, certain=pairwise)
            else:
                self._bind(target, value, tainted, certain=True)

    def _bind(self, target: ast.expr, value: ast.expr, tainted: set[str], certain: bool) -> None:
        """Give a value to a name; it is `certain` that it is the value, and not a part of it."""
        names = _names(target)
        trains = sorted(name.lstrip(".") for name in names if TRAINING_NAME.match(name.lstrip(".")))
        if not self._is_validation(value, tainted):
            # A new value in one place of a list or tensor leaves the others as they are.
            tainted -= names if isinstance(target, ast.Name | ast.Attribute) else set()
        elif not trains:
            tainted |= names
        elif certain and not _separates(value):
            self._training(target.lineno, f"makes {trains[0]} of validation data")

    def _expression(self, node: ast.expr, tainted: set[str], frozen: bool) -> Iterator[Event]:
        for call in ast.walk(node):
            if isinstance(call, ast.Call):
                yield from self._call(call, tainted, frozen)

    def _call(self, call: ast.Call, tainted: set[str], frozen: bool) -> Iterator[Event]:
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        name = method or (call.func.id if isinstance(call.func, ast.Name) else "")
        for keyword in call.keywords:
            if TRAINING_NAME.match(keyword.arg or "") and self._is_validation(keyword.value, tainted):
                self._training(call.lineno, f"gives validation data as {keyword.arg}")
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        if name == "backward" and isinstance(call.func, ast.Attribute):
            arguments.append(call.func.value)  # loss.backward()
        if not any(self._is_validation(argument, tainted) for argument in arguments):
            return
        if name == "backward" or qualified(call.func, self.names) == "torch.autograd.grad":
            yield self._event("train", call.lineno)
        elif CALIBRATION.search(name) and not SCORING_NAME.search(name):
            self._training(call.lineno, f"calls {name} with validation data")
        elif name in self.functions:
            self._give(call, self.functions[name], tainted)
            kinds = {event.kind for event in self.events[name]}
            if kinds:  # one that does both is judged for itself, and for its caller scores
                whole = [a for a in arguments if isinstance(a, ast.Name | ast.Attribute)]
                tokens = [ast.unparse(a) for a in whole if self._is_validation(a, tainted)]
                yield self._event("train" if kinds == {"train"} else "score", call.lineno, tokens)
                if len(kinds) > 1 and self.epochs.intersection(self.loops):
                    yield self._event("train", call.lineno, tokens)
        elif frozen and name in ("append", "add_"):
            yield self._event("score", call.lineno)

    def _give(self, call: ast.Call, function: Function, tainted: set[str]) -> None:
        """Note which parameters of a function receive validation data."""
        parameters = [name for name in _parameters(function) if name != "self"]
        pairs = [*zip(parameters, call.args, strict=False), *((k.arg, k.value) for k in call.keywords)]
        self.given[function.name] |= {
            name for name, value in pairs if name and self._is_validation(value, tainted)
        }

    def _is_validation(self, node: ast.expr, tainted: set[str]) -> bool:
        """Whether any part of an expression holds validation tokens, or says where they are."""
        if isinstance(node, ast.Name):
            return node.id in tainted or bool(VALIDATION_NAME.search(node.id))
        if isinstance(node, ast.Attribute):
            if node.attr in SIZES or TRAINING_ATTRIBUTE.match(node.attr):
                return False
            named = "." + node.attr in tainted or VALIDATION_NAME.search(node.attr)
            return bool(named) or self._is_validation(node.value, tainted)
        if isinstance(node, ast.Compare):
            return False
        if isinstance(node, ast.Constant):
            return isinstance(node.value, str) and self._is_validation_file(node.value)
        if isinstance(node, ast.Call):
            split = {self._text(argument) for argument in node.args}
            self.leaks.sees_shards |= "train" in split
            if {"val", "valid", "validation"} & split:
                return True
            function = node.func.id if isinstance(node.func, ast.Name) else ""
            if function == "len" or (function in self.functions and function not in self.returns):
                return False
        return any(
            self._is_validation(child, tainted)
            for part in ast.iter_child_nodes(node)
            for child in ([part] if isinstance(part, ast.expr) else ast.iter_child_nodes(part))
            if isinstance(child, ast.expr)
        )

    def _text(self, node: ast.expr) -> str:
        """The text that an expression is; "" if it is none."""
        if isinstance(node, ast.Name):
            return self.texts.get(node.id, "")
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""

    def _is_validation_file(self, text: str) -> bool:
        """Whether a file pattern matches the validation shards, alone or beside the training shards."""
        self.leaks.sees_shards |= bool(SHARD.search(text))
        return bool(re.search(r"fineweb_(val|\*)|fineweb\*", text))


def _separates(node: ast.expr) -> bool:
    """Whether an expression names training data too, or picks by name: then it may keep both apart."""
    return any(
        (isinstance(part, ast.Name) and TRAINING_NAME.match(part.id))
        or (isinstance(part, ast.Attribute) and TRAINING_ATTRIBUTE.match(part.attr))
        or (isinstance(part, ast.Constant) and isinstance(part.value, str) and "train" in part.value)
        or (isinstance(part, ast.Compare) and any("val" in text for text in strings(part)))
        for part in ast.walk(node)
    )


def _words(node: ast.For) -> list[str]:
    """The names in the head of a loop, in small letters."""
    parts = [part for head in (node.target, node.iter) for part in ast.walk(head)]
    names = [part.id if isinstance(part, ast.Name) else getattr(part, "attr", "") for part in parts]
    return [str(name).lower() for name in names]


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
