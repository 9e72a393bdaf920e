"""Definitions without the branches that no run takes, since frozen settings decide them."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import libcst as cst

from pargolf.bundle.evaluate import Frozen, Scope, Unknown, choices_of, scope_of
from pargolf.bundle.modules import Key, Node, code_of, mentions, own_parts, parts_of, tree_of

EMPTY = cst.Module([])
# What needs no parentheses, wherever it stands
TIGHT = cst.Name | cst.Attribute | cst.Call | cst.Subscript | cst.SimpleString


def fold(live: Mapping[Key, Node], frozen: Frozen) -> dict[Key, Node]:
    """New forms of those definitions out of which something can be taken: branches, and at last entries."""
    changed: dict[Key, Node] = {}
    for key, node in live.items():
        scope = scope_of(key, node, live, frozen)
        if _may_change(node, scope):
            folded = node.visit(_Folder(scope))
            assert isinstance(folded, Node)
            if code_of(folded) != code_of(node):
                changed[key] = folded
    return changed or _shorter_tables(live, frozen)


def _may_change(node: Node, scope: Scope) -> bool:
    """False where `_Folder` would find nothing; to look is quicker than to visit."""
    for part in parts_of(node):
        match part:
            case ast.If(test=decides) | ast.IfExp(test=decides) | ast.BoolOp(values=[decides, *_]):
                if scope.knows(decides):
                    return True
            case ast.Subscript(value=ast.Dict(), slice=decides) if scope.knows(decides):
                return True
            case ast.Expr(ast.Call(func=ast.Name("require"), args=[decides, *_])) if scope.knows(decides):
                return True
    return any(map(scope.is_absent, mentions(scope.module, node).unions))


class _Folder(cst.CSTTransformer):
    def __init__(self, scope: Scope):
        super().__init__()
        self.scope = scope
        self.elifs: set[cst.CSTNode] = set()

    def value(self, node: cst.BaseExpression) -> Any:
        """The value of an expression in every run; raises Unknown if it may vary."""
        return self.scope.evaluate(ast.parse(f"({EMPTY.code_for_node(node)})", mode="eval").body)

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
        self, old: cst.If, node: cst.If
    ) -> cst.If | cst.Else | cst.RemovalSentinel | cst.FlattenSentinel[cst.BaseStatement]:
        truth = self.decide(node.test)
        if truth is None:
            return node
        kept = cst.Else(node.body) if truth else node.orelse
        if kept is None:
            return cst.RemoveFromParent()
        if old in self.elifs:
            return kept
        if isinstance(kept, cst.If):
            return kept.with_changes(leading_lines=node.leading_lines)
        statements = _statements(kept.body)
        if not statements:
            return cst.RemoveFromParent()
        first, *rest = statements
        # What the comment above the branch says goes for what is left of it.
        lines = (*node.leading_lines, *getattr(first, "leading_lines", ()))
        return cst.FlattenSentinel([first.with_changes(leading_lines=lines), *rest])

    def leave_IfExp(self, old: cst.IfExp, node: cst.IfExp) -> cst.BaseExpression:
        truth = self.decide(node.test)
        if truth is None:
            return node
        return _in_place_of(node, node.body if truth else node.orelse)

    def leave_BooleanOperation(
        self, old: cst.BooleanOperation, node: cst.BooleanOperation
    ) -> cst.BaseExpression:
        truth = self.decide(node.left)
        if truth is None:
            return node
        goes_on = truth == isinstance(node.operator, cst.And)
        return _in_place_of(node, node.right if goes_on else node.left)

    def leave_Subscript(self, old: cst.Subscript, node: cst.Subscript) -> cst.BaseExpression:
        """{"a": x, "b": y}[known] is one of x and y."""
        match node:
            case cst.Subscript(cst.Dict(elements=entries), [cst.SubscriptElement(cst.Index(wanted))]):
                try:
                    found = {self.value(x.key): x.value for x in entries if isinstance(x, cst.DictElement)}
                    if len(found) == len(entries):
                        return _in_place_of(node, found[self.value(wanted)])
                except (Unknown, KeyError):
                    pass
        return node

    def leave_SimpleStatementLine(
        self, old: cst.SimpleStatementLine, node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.RemovalSentinel:
        """What is required holds in every run."""
        match node:
            case cst.SimpleStatementLine([cst.Expr(cst.Call(cst.Name("require"), [cst.Arg(test), *_]))]):
                if self.decide(test):
                    return cst.RemoveFromParent()
        return node

    def leave_IndentedBlock(self, old: cst.IndentedBlock, node: cst.IndentedBlock) -> cst.IndentedBlock:
        """Nothing follows a return; something is left in a block."""
        if not node.body:
            return node.with_changes(body=[cst.SimpleStatementLine([cst.Pass()])])
        for index, line in enumerate(node.body):
            match line:
                case cst.SimpleStatementLine([*_, cst.Return() | cst.Raise()]):
                    return node.with_changes(body=node.body[: index + 1])
        return node

    def leave_FunctionDef(self, old: cst.FunctionDef, node: cst.FunctionDef) -> cst.FunctionDef:
        """A function that yields stays as it is where it would cease to: it would be no generator."""
        return old if _yields(old) and not _yields(node) else node

    # Types

    def leave_BinaryOperation(
        self, old: cst.BinaryOperation, node: cst.BinaryOperation
    ) -> cst.BaseExpression:
        """Of a union of types, those that occur: only an annotation names a class that nothing makes."""
        left, right = node.left, node.right
        if isinstance(node.operator, cst.BitOr):
            for side, other in ((left, right), (right, left)):
                if isinstance(side, cst.Name) and self.scope.is_absent(side.value):
                    return other
        return node


def _in_place_of(whole: cst.BaseExpression, part: cst.BaseExpression) -> cst.BaseExpression:
    """A part of an expression as what takes the place of the whole, in its parentheses."""
    if part.lpar or (isinstance(part, TIGHT) and "\n" not in EMPTY.code_for_node(part)):
        return part
    if isinstance(whole, cst.Subscript) and not whole.lpar:  # it binds tighter than whatever it holds
        return part.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    return part.with_changes(lpar=whole.lpar, rpar=whole.rpar)


def _statements(body: cst.BaseSuite) -> Sequence[cst.BaseStatement]:
    if isinstance(body, cst.IndentedBlock):
        return body.body
    assert isinstance(body, cst.SimpleStatementSuite)
    return [cst.SimpleStatementLine(body.body)]


def _yields(function: cst.FunctionDef) -> bool:
    return any(isinstance(part, ast.Yield | ast.YieldFrom) for part in own_parts(function))


# Tables


def _shorter_tables(live: Mapping[Key, Node], frozen: Frozen) -> dict[Key, Node]:
    """New forms of the tables that have an entry for each word of a setting.

    They keep the entries whose word the program says: as the value of a setting, or anywhere else.
    """
    tables = {key: keys for key, node in live.items() if (keys := _keys(node))}
    choices = choices_of(frozen)
    tables = {key: keys for key, keys in tables.items() if {word.value for word in keys} in choices}
    said = {
        part.value
        for key, node in live.items()
        for part in parts_of(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and part not in tables.get(key, ())
    }
    changed: dict[Key, Node] = {}
    for key, keys in tables.items():
        match live[key]:
            case cst.SimpleStatementLine(
                [cst.Assign(value=cst.Dict() as table) | cst.AnnAssign(value=cst.Dict() as table)]
            ) as line:
                entries = zip(table.elements, keys, strict=True)
                kept = [entry for entry, word in entries if word.value in said]
                if len(kept) < len(keys):
                    kept[-1] = kept[-1].with_changes(comma=table.elements[-1].comma)
                    changed[key] = line.with_deep_changes(table, elements=kept)
    return changed


def _keys(node: Node) -> list[ast.Constant]:
    """The keys of the table that a definition is; none if it is anything else."""
    match tree_of(node):
        case ast.Assign(value=ast.Dict(keys=keys)) | ast.AnnAssign(value=ast.Dict(keys=keys)):
            constants = [key for key in keys if isinstance(key, ast.Constant)]
            return constants if len(constants) == len(keys) else []
    return []
