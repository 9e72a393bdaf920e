"""Code without what cannot happen: branches that constants decide, parameters that nothing reads."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import libcst as cst

from pargolf.bundle.known import Known, Scope, Unknown, parameters, scope_of
from pargolf.bundle.learn import callee_of
from pargolf.bundle.modules import Key, Node, code_of, mentions, parts_of

EMPTY = cst.Module([])


def fold(live: Mapping[Key, Node], known: Known) -> dict[Key, Node]:
    """New forms of the definitions out of which something can be taken that `known` shows to be needless."""
    changed = {}
    for key, node in live.items():
        scope = scope_of(key, node, known)
        if _may_change(node, scope):
            folded = node.visit(_Folder(scope))
            assert isinstance(folded, Node)
            if code_of(folded) != code_of(node):
                changed[key] = folded
    return changed


def _may_change(node: Node, scope: Scope) -> bool:
    """False where `_Folder` would find nothing; to look is quicker than to visit."""
    known, module = scope.known, scope.key[0]
    is_table = not isinstance(node, cst.FunctionDef | cst.ClassDef)

    def matters(part: ast.AST) -> bool:
        match part:
            case ast.If(test=test) | ast.IfExp(test=test) | ast.BoolOp(values=[test, *_]):
                return scope.knows(test)
            case ast.Call(func=function):
                callee = callee_of(module, function, known.live)
                return callee in known.unused
            case ast.Attribute(attr=name):
                return name in known.unread
            case ast.Subscript(value=ast.Dict()):
                return True
        return is_table and isinstance(part, ast.Dict)

    absent = any(known.is_absent(module, name) for name in mentions(node).unions)
    return absent or scope.key in known.unused or any(map(matters, parts_of(node)))


class _Folder(cst.CSTTransformer):
    def __init__(self, scope: Scope):
        super().__init__()
        self.scope, self.known, self.module = scope, scope.known, scope.key[0]
        self.unused = self.known.unused.get(scope.key, frozenset())
        self.elifs: set[cst.CSTNode] = set()
        self.depth = 0

    def value(self, node: cst.BaseExpression) -> Any:
        """The constant value of an expression; raises Unknown if it has none."""
        return self.scope.evaluate(_expression(node))

    def decide(self, test: cst.BaseExpression) -> bool | None:
        """The truth of an expression; None if it depends on the run."""
        try:
            return bool(self.value(test))
        except Unknown:
            return None

    # Branches

    def visit_If(self, node: cst.If) -> None:
        self.elifs |= {node.orelse} if isinstance(node.orelse, cst.If) else set()

    def leave_If(  # type: ignore[override]  # an elif may become an else, which is no statement
        self, original_node: cst.If, updated_node: cst.If
    ) -> cst.If | cst.Else | cst.RemovalSentinel | cst.FlattenSentinel[cst.BaseStatement]:
        truth = self.decide(updated_node.test)
        if truth is None:
            return updated_node
        kept = cst.Else(updated_node.body) if truth else updated_node.orelse
        if kept is None:
            return cst.RemoveFromParent()
        if original_node in self.elifs:
            return kept
        if isinstance(kept, cst.If):
            return kept.with_changes(leading_lines=updated_node.leading_lines)
        statements = _statements(kept.body)
        if not statements:
            return cst.RemoveFromParent()
        first, *rest = statements
        # What the comment above the branch says goes for what is left of it.
        lines = (*updated_node.leading_lines, *getattr(first, "leading_lines", ()))
        return cst.FlattenSentinel([first.with_changes(leading_lines=lines), *rest])

    def leave_IfExp(self, original_node: cst.IfExp, updated_node: cst.IfExp) -> cst.BaseExpression:
        truth = self.decide(updated_node.test)
        return updated_node if truth is None else updated_node.body if truth else updated_node.orelse

    def leave_BooleanOperation(
        self, original_node: cst.BooleanOperation, updated_node: cst.BooleanOperation
    ) -> cst.BaseExpression:
        truth = self.decide(updated_node.left)
        if truth is None:
            return updated_node
        return (
            updated_node.right if truth == isinstance(updated_node.operator, cst.And) else updated_node.left
        )

    def leave_IndentedBlock(
        self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock
    ) -> cst.IndentedBlock:
        """Nothing follows a return."""
        for index, line in enumerate(updated_node.body):
            if isinstance(line, cst.SimpleStatementLine) and isinstance(
                line.body[-1], cst.Return | cst.Raise
            ):
                return updated_node.with_changes(body=updated_node.body[: index + 1])
        return updated_node

    # Choices

    def leave_Subscript(
        self, original_node: cst.Subscript, updated_node: cst.Subscript
    ) -> cst.BaseExpression:
        """{"a": x, "b": y}[known] is one of x and y."""
        match updated_node:
            case cst.Subscript(cst.Dict(elements=entries), [cst.SubscriptElement(cst.Index(wanted))]):
                try:
                    found = [
                        entry.value for entry in entries if self.value(_key(entry)) == self.value(wanted)
                    ]
                except Unknown:
                    return updated_node
                return found[0]
        return updated_node

    def leave_Dict(self, original_node: cst.Dict, updated_node: cst.Dict) -> cst.Dict:
        """A table by the words of one setting: leave its own, and those the program says elsewhere."""
        if len(self.scope.key) != 2 or self.depth or not updated_node.elements:
            return updated_node
        try:
            keys = [self.value(_key(entry)) for entry in updated_node.elements]
            chosen = self.known.settings.choice(set(keys))
        except Unknown:
            return updated_node
        leave_out = [key != chosen and key not in self.known.words for key in keys]
        return updated_node.with_changes(elements=_without(updated_node.elements, leave_out))

    # Parameters, arguments and attributes

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:
        self.depth += 1

    def leave_FunctionDef(
        self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef
    ) -> cst.FunctionDef:
        self.depth -= 1
        if self.depth or not self.unused:
            return updated_node
        lists = {
            name: _without(group, [parameter.name.value in self.unused for parameter in group])
            for name in ("params", "kwonly_params")
            for group in [getattr(updated_node.params, name)]
        }
        return updated_node.with_changes(params=updated_node.params.with_changes(**lists))

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        callee = callee_of(self.module, _expression(updated_node.func), self.known.live)
        unused = self.known.unused.get(callee, frozenset()) if callee else frozenset()
        names = [parameter.arg for parameter in parameters(self.known.live[callee])] if callee else []
        leave_out = []
        for place, argument in enumerate(updated_node.args):
            name = argument.keyword.value if argument.keyword else "".join(names[place : place + 1])
            passes_on = isinstance(argument.value, cst.Name) and argument.value.value in self.unused
            leave_out.append(passes_on or name in unused)
        return updated_node.with_changes(args=_without(updated_node.args, leave_out))

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.RemovalSentinel:
        """Take out assignments of constants to attributes that nothing reads."""
        match updated_node.body:
            case [cst.Assign([cst.AssignTarget(cst.Tuple(targets))], cst.Tuple(values))]:
                leave_out = [self.is_unread(target.value) for target in targets]
                if len(targets) != len(values) or not any(leave_out):
                    return updated_node
                left, right = _without(targets, leave_out), _without(values, leave_out)
                if not left:
                    return cst.RemoveFromParent()
                return updated_node.with_changes(
                    body=[cst.Assign([cst.AssignTarget(_tuple(left))], _tuple(right))]
                )
            case [cst.Assign([cst.AssignTarget(target)])] | [cst.AnnAssign(target)] if self.is_unread(target):
                return cst.RemoveFromParent()
        return updated_node

    def is_unread(self, target: cst.BaseExpression) -> bool:
        match target:
            case cst.Attribute(cst.Name("self"), cst.Name(name)):
                return name in self.known.unread
        return False

    # Types

    def leave_BinaryOperation(
        self, original_node: cst.BinaryOperation, updated_node: cst.BinaryOperation
    ) -> cst.BaseExpression:
        """Of a union of types, leave those that occur: only annotations name a class that nothing makes."""
        left, right = updated_node.left, updated_node.right
        if isinstance(updated_node.operator, cst.BitOr):
            for side, other in ((left, right), (right, left)):
                absent = isinstance(side, cst.Name) and self.known.is_absent(self.module, side.value)
                if absent and not (isinstance(other, cst.Name) and other.value == "None"):
                    return other
        return updated_node


def _expression(node: cst.BaseExpression) -> ast.expr:
    return ast.parse(f"({EMPTY.code_for_node(node)})", mode="eval").body


def _key(entry: cst.BaseDictElement) -> cst.BaseExpression:
    if not isinstance(entry, cst.DictElement):
        raise Unknown
    return entry.key


def _statements(body: cst.BaseSuite) -> Sequence[cst.BaseStatement]:
    if isinstance(body, cst.IndentedBlock):
        return body.body
    assert isinstance(body, cst.SimpleStatementSuite)
    return [cst.SimpleStatementLine(body.body)]


def _tuple(elements: Sequence[Any]) -> Any:
    return elements[0].value if len(elements) == 1 else cst.Tuple(elements, lpar=(), rpar=())


def _without(items: Sequence[Any], leave_out: Sequence[bool]) -> Sequence[Any]:
    """The items of a list but for some; what comes after the last one stays as it was."""
    kept = [item for item, out in zip(items, leave_out, strict=True) if not out]
    if kept and leave_out[-1]:
        spaces = ("comma", "whitespace_after_arg", "whitespace_after_param")
        kept[-1] = kept[-1].with_changes(
            **{name: getattr(items[-1], name) for name in spaces if hasattr(items[-1], name)}
        )
    return kept
