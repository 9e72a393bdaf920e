"""How the code comes to a token's probability: from earlier tokens alone, and before it sees the token.

By syntax, so these are doubts: a running model proves more (`pargolf verify`).
"""

import ast
import re
from collections.abc import Iterator

from pargolf.check.sources import Source, aliases, calls, qualified

LOSS = re.compile(r"(^|_)(nlls?|loss(es)?|bpb|ce|xent)(_|\d|$)")
KEPT = re.compile(r"best|lowest|min_|(^|_)min$")  # bookkeeping of the best training run so far
TARGET = re.compile(r"^(tgts?|targets?|labels?|next_tok(en)?s?)(_\w+)?$")
SMALLEST = frozenset({"min", "minimum", "fmin", "amin"})


def doubts_of_prediction(source: Source) -> list[str]:
    """Attention without a causal mask, the better of two losses, keys that hold the target: one line each."""
    found: list[str] = []
    for tree in source.trees:
        names = aliases(tree)
        for call in calls(tree):
            if _sees_ahead(call, qualified(call.func, names)):
                found.append(f"line {call.lineno} calls attention without a causal mask")
            if _takes_better(call):
                found.append(f"line {call.lineno} takes the smaller of several losses")
        found += [
            f"line {line} looks a table up by a key that holds the target" for line in _target_keys(tree)
        ]
    return list(dict.fromkeys(found))


def _sees_ahead(call: ast.Call, function: str) -> bool:
    """Whether an attention that is known is called without a mask that hides later positions."""
    name = function.rsplit(".", 1)[-1]
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    if None in options:  # **options may hold it
        return False
    if name == "scaled_dot_product_attention":
        return len(call.args) < 4 and "attn_mask" not in options and _is_off(options.get("is_causal"))
    if re.fullmatch(r"flash_attn\w*_func", name):
        return _is_off(options.get("causal"))
    return False


def _is_off(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and not value.value)


def _takes_better(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in SMALLEST:
        return False
    values: list[ast.expr] = list(call.args)
    if isinstance(call.func, ast.Attribute):  # torch.stack([a, b]).min(0), a.minimum(b)
        values.append(call.func.value)
    parts = [part for value in values for part in _elements(value)]
    named = [{n.id for n in ast.walk(part) if isinstance(n, ast.Name)} for part in parts]
    losses = [names for names in named if any(LOSS.search(name) for name in names)]
    return len(losses) > 1 and not any(KEPT.search(name) for names in losses for name in names)


def _elements(value: ast.expr) -> list[ast.expr]:
    """The items of a list, also of one that is stacked; else the value itself."""
    if isinstance(value, ast.Call) and value.args and isinstance(value.args[0], ast.List | ast.Tuple):
        value = value.args[0]
    return value.elts if isinstance(value, ast.List | ast.Tuple) else [value]


def _target_keys(tree: ast.Module) -> Iterator[int]:
    """Lines that read a table at a key into which the target was hashed."""
    hashed = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _hashes_target(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            used = {n.id for n in ast.walk(node.slice) if isinstance(n, ast.Name)}
            if used & hashed or _hashes_target(node.slice):
                yield node.lineno


def _hashes_target(node: ast.expr) -> bool:
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    mixes = any(isinstance(p, ast.BitXor) for p in ast.walk(node))
    return mixes and any(TARGET.match(name) for name in names)
