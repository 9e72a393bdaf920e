"""What is taken out of a definition never changes what it does."""

import ast
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import libcst as cst
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pargolf.bundle.fold import fold
from pargolf.bundle.known import Known, Settings, scope_of
from pargolf.bundle.modules import Key, Node, code_of
from pargolf.config.schema import ModelConfig, RunConfig

CONFIG = RunConfig()
SETTINGS = Settings(CONFIG, frozenset({("model", "n_layers"), ("train", "iterations")}))
KEY = ("pargolf.model.gpt", "f")


def parse(source: str) -> Node:
    node = cst.parse_statement(source)
    assert isinstance(node, Node)
    return node


def folded(source: str, key: Key = KEY, **known: Any) -> str:
    """The source of a definition after one pass over it."""
    live: Mapping[Key, Node] = {key: parse(source)}
    return code_of(fold(live, Known(SETTINGS, live, **known)).get(key, live[key]))


# x and c.n_layers vary; c.q_rank is 192 in every run.
atoms = st.sampled_from([
    "x", "not x", "c.n_layers > 5", "c.q_rank", "not c.q_rank", "c.q_rank == 192", "c.q_rank < 9",
    "c.q_rank in (0, 192)", "None is None", "0",
])  # fmt: skip
tests = st.recursive(
    atoms, lambda t: st.builds("({} {} {})".format, t, st.sampled_from(["and", "or"]), t), max_leaves=5
)
leaves = st.builds("seen.append({} if {} else {})".format, st.integers(0, 9), tests, st.integers(0, 9))


def indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def branches(body: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def write(conditions: list[str], bodies: list[str]) -> str:
        heads = [f"{'elif' if i else 'if'} {test}:" for i, test in enumerate(conditions)] + ["else:"]
        return "\n".join(f"{head}\n{indent(text)}" for head, text in zip(heads, bodies, strict=False))

    return st.lists(tests, min_size=1, max_size=3).flatmap(
        lambda c: st.lists(body, min_size=len(c), max_size=len(c) + 1).map(lambda bodies: write(c, bodies))
    )


blocks = st.recursive(leaves, lambda b: branches(b) | st.builds("{}\n{}".format, b, b), max_leaves=8)


def outcome(source: str, n_layers: int, x: bool) -> list[int]:
    seen: list[int] = []
    names: dict[str, Any] = {"ModelConfig": ModelConfig}
    exec(source, names)
    names["f"](replace(CONFIG.model, n_layers=n_layers), x, seen)
    return seen


@settings(max_examples=50, deadline=None)
@given(blocks)
def test_folding_changes_no_outcome(block: str) -> None:
    source = f"def f(c: ModelConfig, x, seen):\n{indent(block)}\n"
    short = folded(source)
    assert len(short) <= len(source)
    for n_layers in (2, 11):
        for x in (False, True):
            assert outcome(short, n_layers, x) == outcome(source, n_layers, x)


@given(tests, st.booleans(), st.sampled_from([2, 11]))
def test_what_is_known_of_an_expression_is_so(test: str, x: bool, n_layers: int) -> None:
    node = parse(f"def f(c: ModelConfig, x):\n    return {test}\n")
    scope = scope_of(KEY, node, Known(SETTINGS, {KEY: node}))
    expression = ast.parse(test, mode="eval").body
    if scope.knows(expression):
        names = {"c": replace(CONFIG.model, n_layers=n_layers), "x": x}
        assert scope.evaluate(expression) == eval(test, names)


def test_decided_branches_leave_no_trace() -> None:
    source = """\
def f(c: ModelConfig, x):
    # Why the branch is there.
    if c.q_rank:
        y = low(x)
    else:
        y = full(x)
    if c.n_layers > 3:
        return y
    elif c.q_rank == 0:
        return -y
    else:
        return None
"""
    expected = """\
def f(c: ModelConfig, x):
    # Why the branch is there.
    y = low(x)
    if c.n_layers > 3:
        return y
    else:
        return None
"""
    assert folded(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "def f(c: ModelConfig):\n    c = other()\n    return 1 if c.q_rank else 2\n",  # another object
        "def f(c):\n    return 1 if c.q_rank else 2\n",  # anything may have a q_rank
        "def f(t: TrainConfig):\n    return 1 if t.iterations else 2\n",  # ITERATIONS changes it
        "def f(t: TrainConfig):\n    return 1 if t.device == 'cpu' else 2\n",  # "auto" in the frozen settings
        "def f(x):\n    for y in x:\n        n = 0\n        n += 1\n    return 1 if n else 2\n",
        "def f(xs):\n    y = 0\n    return [1 if y else 2 for y in xs]\n",
    ],
)
def test_what_may_vary_is_left_alone(source: str) -> None:
    assert folded(source) == source


def test_aliases_of_settings_are_seen_through() -> None:
    source = """\
def f(config: RunConfig):
    x, e = config.export, config.eval
    top = {"zstd": 22, "zlib": 9}[x.codec]
    return top if x.layout == "bytes" else e.stride
"""
    assert folded(source).endswith("    top = 22\n    return top\n")


def test_a_table_of_choices_keeps_what_may_be_looked_up() -> None:
    key = ("pargolf.export.codec", "CODECS")
    table = 'CODECS = {"zstd": a, "zlib": b, "brotli": c, "lzma": d}\n'
    assert folded(table, key) == 'CODECS = {"zstd": a}\n'
    two = 'CODECS = {"zstd": a, "zlib": b}\n'
    assert folded(table, key, words=frozenset({"zlib"})) == two
    unlike = 'CODECS = {"zstd": a, "other": b}\n'
    assert folded(two, key) == two  # not all of the setting's words
    assert folded(unlike, key) == unlike
    numbers = "FLOATS = {16: a, 32: b}\n"  # also the choices of export.vector_bits
    assert folded(numbers, key) == numbers


def test_parameters_and_arguments_go_together() -> None:
    score, caller = ("pargolf.score.windows", "score"), ("pargolf.train.stages", "g")
    live: dict[Key, Node] = {
        score: parse(
            "def score(model, tokens, progress=None, stride=1):\n    return model(tokens, stride)\n"
        ),
        caller: parse(
            "def g(m):\n    return score(m, 1, None, 64) + score(m, stride=2, progress=m.bar, tokens=3)\n"
        ),
    }
    changed = fold(live, Known(SETTINGS, live, unused={score: frozenset({"progress"})}))
    assert code_of(changed[score]).startswith("def score(model, tokens, stride=1):")
    assert "score(m, 1, 64) + score(m, stride=2, tokens=3)" in code_of(changed[caller])


def test_unread_attributes_are_not_set() -> None:
    source = "def __init__(self, a, b):\n    self.a, self.order, self.b = a, 'x', b\n    self.c: int = 3\n"
    key = ("pargolf.data.batches", "Batches", "__init__")
    assert "self.a, self.b = a, b" in folded(source, key, unread=frozenset({"order"}))
    assert "self.c" not in folded(source, key, unread=frozenset({"c"}))
    assert folded(source, key, unread=frozenset({"a", "order", "b", "c"})).splitlines()[1].strip() == "pass"
