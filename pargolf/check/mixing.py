"""Gates that mix a token's neighbour into it: where documents are packed, they must stop at BOS.

A smear gate adds g * x[t-1] to x[t]. In a packed stream x[t-1] of a BOS is the last token of another
document (the challenge's pull requests 1797, 1851 and 1855). Read here by syntax: a tensor is added to
itself shifted by one position, and nothing in that sum compares tokens or is named as a mask.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pargolf.check.sources import Source

Function = ast.FunctionDef | ast.AsyncFunctionDef
# Numbers of tokens, lengths and places are shifted for other ends than mixing.
NOT_HIDDEN = re.compile(
    r"(^|_)(ids?|idx|toks?|tokens?|targets?|labels?|tgts?|bytes?|cu|seqlens?|lens?|pos|counts?|offsets?|starts?|ends?)(_|$)"
)
MASK = re.compile(r"bos|mask|doc|bound|segment|seqlens|reset|same_", re.IGNORECASE)
KEEPS_APART = re.compile(r"varlen|cu_seqlens|block_mask|doc(ument)?_(mask|ids?)", re.IGNORECASE)
PICKS = ("where", "masked_fill", "masked_fill_")  # calls that take a value only where a mask says so


@dataclass
class Mixing:
    """Where tokens are mixed with the token before them, one line each."""

    certain: list[str] = field(default_factory=list)
    """Without a mask, in every run, in code whose attention keeps documents apart."""
    perhaps: list[str] = field(default_factory=list)
    """Without a mask, under a condition, or in code whose attention crosses documents as well."""
    masked: list[str] = field(default_factory=list)


def find_mixing(source: Source) -> Mixing:
    """The sums of a tensor with itself one position earlier, in all layers of the code."""
    found = Mixing()
    for tree in source.trees:
        apart = any(KEEPS_APART.search(name) for name in _identifiers(tree))
        parents = {id(child): node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for function in ast.walk(tree):
            if isinstance(function, Function):
                for node in _sums(function):
                    _judge(node, function, tree, parents, apart, found)
    return found


def _judge(
    node: ast.AST,
    function: Function,
    tree: ast.Module,
    parents: dict[int, ast.AST],
    apart: bool,
    found: Mixing,
) -> None:
    text = f"line {getattr(node, 'lineno', 0)} mixes the token before into each token"
    uses = _uses(function, tree, parents)
    if _is_masked(node, function) or any(_is_picked(use, parents) for use in uses):
        found.masked.append(text)
    elif not apart:
        found.perhaps.append(f"{text} with no mask at BOS; attention crosses documents there, too")
    elif uses and not any(_is_conditional(use, parents) for use in [node, *uses]):
        found.certain.append(f"{text} with no mask at BOS, where attention keeps documents apart")
    else:
        found.perhaps.append(
            f"{text} with no mask at BOS, where attention keeps documents apart, if it is on"
        )


def _sums(function: Function) -> Iterator[ast.AST]:
    """The outermost sums in a function of a tensor with itself one position earlier."""
    shifted: dict[str, str] = {}  # names that hold such a tensor -> what it is shifted from
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and (base := _shifted(node.value, shifted)):
            shifted |= {target.id: base for target in node.targets if isinstance(target, ast.Name)}
    inner: set[int] = set()
    for node in ast.walk(function):  # from outside to inside
        if id(node) in inner:
            continue
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            mixes = _mixes(node, [node], shifted) and not _is_difference(node)
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
            mixes = _mixes(node, [node.value], shifted)
        else:
            mixes = _is_lerp(node) and _mixes(node, [node], shifted)
        if mixes:
            inner |= {id(part) for part in ast.walk(node)}
            yield node


def _mixes(node: ast.AST, values: list[ast.AST], shifted: dict[str, str]) -> bool:
    """Whether the values hold a tensor one position earlier, and the whole holds the tensor itself."""
    earlier: set[int] = set()
    bases: set[str] = set()
    for value in values:
        for part in ast.walk(value):
            if isinstance(part, ast.expr) and id(part) not in earlier and (base := _shifted(part, shifted)):
                bases.add(base)
                earlier |= {id(inner) for inner in ast.walk(part)}
    itself = {
        ast.unparse(p)
        for p in ast.walk(node)
        if isinstance(p, ast.Name | ast.Attribute) and id(p) not in earlier
    }
    hashes = any(isinstance(p, ast.BitXor | ast.Mod | ast.BitAnd) for p in ast.walk(node))
    return not hashes and any(base in itself and not NOT_HIDDEN.search(base.lower()) for base in bases)


def _shifted(node: ast.expr, shifted: dict[str, str]) -> str:
    """What an expression is one position earlier; "" if it is no such thing.

    x[:, :-1], F.pad(x, (0, 0, 1, 0))[:, :-1], torch.roll(x, 1, 1), torch.cat([zeros, x[:, :-1]], 1).
    """
    if isinstance(node, ast.Name):
        return shifted.get(node.id, "")
    if isinstance(node, ast.Subscript) and _all_but_last(node.slice):
        value = node.value
        if isinstance(value, ast.Call) and _name(value.func) == "pad" and value.args:
            value = value.args[0]
        return ast.unparse(value) if isinstance(value, ast.Name | ast.Attribute) else ""
    if not isinstance(node, ast.Call):
        return ""
    name = _name(node.func)
    if name == "roll":
        receiver = [node.func.value] if isinstance(node.func, ast.Attribute) and len(node.args) < 3 else []
        arguments = [*receiver, *node.args] if not _is_module(receiver) else node.args
        by_one = any(isinstance(a, ast.Constant) and a.value == 1 for a in [*node.args[:2], *_values(node)])
        return ast.unparse(arguments[0]) if arguments and by_one else ""
    if (
        name in ("cat", "concat", "concatenate")
        and node.args
        and isinstance(node.args[0], ast.List | ast.Tuple)
    ):
        return next((base for part in node.args[0].elts if (base := _shifted(part, shifted))), "")
    if name in ("to", "contiguous", "detach", "type_as", "float", "clone") and isinstance(
        node.func, ast.Attribute
    ):
        return _shifted(node.func.value, shifted)
    return ""


def _values(call: ast.Call) -> list[ast.expr]:
    return [keyword.value for keyword in call.keywords if keyword.arg == "shifts"]


def _is_module(receiver: list[ast.expr]) -> bool:
    return bool(receiver) and isinstance(receiver[0], ast.Name) and receiver[0].id in ("torch", "np", "numpy")


def _all_but_last(index: ast.expr) -> bool:
    """Whether an index is [:, :-1], [:, :-1, ...] or [..., :-1, :]: all positions but the last."""
    if not isinstance(index, ast.Tuple) or len(index.elts) < 2:
        return False
    place = 1 if isinstance(index.elts[0], ast.Slice) else len(index.elts) - 2
    part = index.elts[place]
    return (
        place >= 1
        and isinstance(part, ast.Slice)
        and part.lower is None
        and part.upper is not None
        and ast.unparse(part.upper) == "-1"
    )


def _is_difference(node: ast.BinOp) -> bool:
    """x[:, 1:] - x[:, :-1] alone: lengths or changes, and no mixture."""
    return isinstance(node.op, ast.Sub) and not any(isinstance(p, ast.Mult) for p in ast.walk(node))


def _is_lerp(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _name(node.func) in ("lerp", "lerp_")


def _is_masked(node: ast.AST, function: Function) -> bool:
    """Whether a mask enters the sum, through names of the function, or picks from its result."""
    statements = [
        s for s in ast.walk(function) if isinstance(s, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr)
    ]
    pending, seen = [node], set[str]()
    while pending:
        part = pending.pop()
        if any(isinstance(p, ast.Eq | ast.NotEq) for p in ast.walk(part)) or _names_mask(part):
            return True
        for name in {p.id for p in ast.walk(part) if isinstance(p, ast.Name)} - seen:
            seen.add(name)
            pending += [s for s in statements if _changes(s, name) and not _contains(s, node)]
    results = {t.id for s in statements if isinstance(s, ast.Assign) and _contains(s, node) for t in s.targets
               if isinstance(t, ast.Name)}  # fmt: skip
    return any(
        isinstance(call, ast.Call)
        and _name(call.func) in PICKS
        and _names_mask(call)
        and results & {p.id for p in ast.walk(call) if isinstance(p, ast.Name)}
        for call in ast.walk(function)
    )


def _changes(statement: ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr, name: str) -> bool:
    """Whether a statement gives a value to a local name or a part of it, or calls a method of it."""
    if isinstance(statement, ast.Expr):
        call = statement.value
        return (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and _root(call.func.value) == name
        )
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return any(_root(target) == name for target in targets)


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _contains(whole: ast.AST, part: ast.AST) -> bool:
    return any(node is part for node in ast.walk(whole))


def _names_mask(node: ast.AST) -> bool:
    return any(MASK.search(name) for name in _identifiers(node))


def _identifiers(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, ast.arg | ast.keyword) and part.arg:
            yield part.arg


def _uses(function: Function, tree: ast.Module, parents: dict[int, ast.AST]) -> list[ast.Call]:
    """Where the function is called, or the module whose method it is, is made and called."""
    owner = parents.get(id(function))
    if not isinstance(owner, ast.ClassDef):
        return [c for c in ast.walk(tree) if isinstance(c, ast.Call) and _name(c.func) == function.name]
    made = [c for c in ast.walk(tree) if isinstance(c, ast.Call) and _name(c.func) == owner.name]
    if function.name not in ("forward", "__call__"):
        return (
            [c for c in ast.walk(tree) if isinstance(c, ast.Call) and _name(c.func) == function.name]
            if made
            else []
        )
    held = {
        _name(target)
        for call in made
        if isinstance(statement := parents.get(id(call)), ast.Assign)
        for target in statement.targets
    }
    return made + [c for c in ast.walk(tree) if isinstance(c, ast.Call) and _name(c.func) in held - {""}]


def _is_picked(use: ast.AST, parents: dict[int, ast.AST]) -> bool:
    """Whether a call lies in one that takes its result only where a mask says so."""
    return any(
        isinstance(node, ast.Call) and _name(node.func) in PICKS and _names_mask(node)
        for node in _above(use, parents)
    )


def _is_conditional(node: ast.AST, parents: dict[int, ast.AST]) -> bool:
    return any(
        isinstance(above, ast.If | ast.IfExp | ast.While)
        for above in _above(node, parents)
        if not _is_main(above)
    )


def _is_main(node: ast.AST) -> bool:
    """if __name__ == "__main__"."""
    return isinstance(node, ast.If) and "__name__" in set(_identifiers(node.test))


def _above(node: ast.AST, parents: dict[int, ast.AST]) -> Iterator[ast.AST]:
    while (above := parents.get(id(node))) is not None:
        yield above
        if isinstance(above, Function):
            return
        node = above


def _name(node: ast.expr) -> str:
    """The last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
