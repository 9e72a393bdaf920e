"""What is taken out of a definition never changes what it does."""

import ast
from dataclasses import replace
from typing import Any

import libcst as cst
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pargolf.bundle.evaluate import Frozen, freeze, scope_of
from pargolf.bundle.fold import fold
from pargolf.bundle.modules import Key, Node, code_of, read_module
from pargolf.config.schema import ModelConfig, RunConfig

CONFIG = RunConfig()
FROZEN = freeze(CONFIG, {"model.n_layers", "train.iterations"})
KEY = ("pargolf.config.schema", "f")  # where the classes of settings are known


def parse(source: str) -> Node:
    node = cst.parse_statement(source)
    assert isinstance(node, Node)
    return node


def folded(source: str, key: Key = KEY, frozen: Frozen = FROZEN, **others: str) -> str:
    """The source of a definition after one pass over it and over others of its module."""
    live = {key: parse(source)} | {(key[0], name): parse(text) for name, text in others.items()}
    return code_of(fold(live, frozen).get(key, live[key]))


# x and c.n_layers vary; c.q_rank is 192 in every run.
atoms = st.sampled_from([
    "x", "not x", "c.n_layers > 5", "c.q_rank", "not c.q_rank", "c.q_rank == 192", "c.q_rank < 9",
    "c.q_rank in (0, 192)", "None is None", "0",
])  # fmt: skip
tests = st.recursive(
    atoms, lambda t: st.builds("({} {} {})".format, t, st.sampled_from(["and", "or"]), t), max_leaves=5
)
digits = st.integers(0, 9)
leaves = st.one_of(
    st.builds("seen.append({} if {} else {})".format, digits, tests, digits),
    # Where one expression takes the place of another, it must not bind otherwise.
    st.builds("seen.append(2 * ({} - x if {} else {} + x))".format, digits, tests, digits),
    st.builds("seen.append(-(not {}) == x)".format, tests),
    st.builds("seen.append({{'byte': {} - x, 'bytes': {} + x}}[x_layout] * 2)".format, digits, digits),
)


def indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def branches(body: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def write(conditions: list[str], bodies: list[str]) -> str:
        heads = [f"{'elif' if i else 'if'} {test}:" for i, test in enumerate(conditions)] + ["else:"]
        return "\n".join(f"{head}\n{indent(text)}" for head, text in zip(heads, bodies, strict=False))

    return st.lists(tests, min_size=1, max_size=3).flatmap(
        lambda c: st.lists(body, min_size=len(c), max_size=len(c) + 1).map(lambda bodies: write(c, bodies))
    )


def blocks_of(*more: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    lines = st.one_of(leaves, *more)
    return st.recursive(lines, lambda b: branches(b) | st.builds("{}\n{}".format, b, b), max_leaves=8)


def outcome(source: str, n_layers: int, x: bool) -> tuple[list[int], list[Any] | None]:
    """What a function appends to `seen`, and what it yields if it is a generator."""
    seen: list[int] = []
    names: dict[str, Any] = {"ModelConfig": ModelConfig, "RunConfig": RunConfig}
    exec(source, names)
    config = replace(CONFIG, model=replace(CONFIG.model, n_layers=n_layers))
    returned = names["f"](config, x, seen)
    return seen, None if returned is None else list(returned)


@settings(max_examples=60, deadline=None)
@given(blocks_of() | blocks_of(st.sampled_from(["yield x", "return", "raise StopAsyncIteration"])))
def test_folding_changes_no_outcome(block: str) -> None:
    body = f"c = config.model\nx_layout = config.export.layout\n{block}"
    source = f"def f(config: RunConfig, x, seen):\n{indent(body)}\n"
    short = folded(source)
    for n_layers in (2, 11):
        for x in (False, True):
            results = []
            for text in (short, source):
                try:
                    results.append(outcome(text, n_layers, x))
                except StopAsyncIteration:
                    results.append(([], None))
            assert results[0] == results[1]


@given(tests, st.booleans(), st.sampled_from([2, 11]))
def test_what_is_known_of_an_expression_is_so(test: str, x: bool, n_layers: int) -> None:
    node = parse("def f(c: ModelConfig, x): pass\n")
    scope = scope_of(KEY, node, {KEY: node}, FROZEN)
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
        "def f(c: ModelConfig):\n    with other() as c:\n        return 1 if c.q_rank else 2\n",
        "def f(c: ModelConfig):\n    match 1:\n        case c:\n            return 1 if c.q_rank else 2\n",
        "def f(c):\n    return 1 if c.q_rank else 2\n",  # anything may have a q_rank
        "def f(t: TrainConfig):\n    return 1 if t.iterations else 2\n",  # ITERATIONS changes it
        "def f(t: TrainConfig):\n    return 1 if t.device == 'cpu' else 2\n",  # "auto" in the frozen settings
        "def f(c: ModelConfig):\n    return 1 if c.d_head else 2\n",  # a property depends on others
        "def f(x):\n    for y in x:\n        n = 0\n        n += 1\n    return 1 if n else 2\n",
        "def f(xs):\n    y = 0\n    return [1 if y else 2 for y in xs]\n",
        "def f():\n    def g():\n        BUDGET = 0\n    return 1 if BUDGET else 2\n",  # the module's
    ],
)
def test_what_may_vary_is_left_alone(source: str) -> None:
    assert folded(source) == source


def test_what_is_required_and_always_holds_is_not_asked() -> None:
    source = """def f(c: ModelConfig) -> None:
    require(c.q_rank > 9, "too low")
    require(c.q_rank < 9, "never holds, and says so")
    require(c.n_layers > 9, "may vary")
"""
    assert folded(source) == source.replace('    require(c.q_rank > 9, "too low")\n', "")
    alone = 'def f(c: ModelConfig) -> None:\n    require(c.q_rank > 9, "too low")\n'
    assert folded(alone) == "def f(c: ModelConfig) -> None:\n    pass\n"


def test_a_generator_stays_one() -> None:
    source = "def f(c: ModelConfig, x):\n    if c.q_rank:\n        return\n    yield x\n"
    assert folded(source) == source
    nested = f"def g(c: ModelConfig):\n{indent(source)}\n    if c.q_rank:\n        return f\n    yield 1\n"
    assert folded(nested) == nested
    choice = "def f(c: ModelConfig, x):\n    if c.q_rank:\n        yield x\n    else:\n        yield -x\n"
    assert folded(choice) == "def f(c: ModelConfig, x):\n    yield x\n"


def test_aliases_of_settings_are_seen_through() -> None:
    source = """\
def f(config: RunConfig):
    x, e = config.export, config.eval
    c: ModelConfig = whatever(config)
    top = {"zstd": 22, "zlib": 9}[x.codec] if c.q_rank else 0
    return top if x.layout == "bytes" else e.stride
"""
    assert folded(source).endswith("    top = (22)\n    return top\n")


def test_a_table_of_choices_keeps_what_may_be_looked_up() -> None:
    key = ("pargolf.export.codec", "CODECS")
    table = 'CODECS = {"zstd": a, "zlib": b, "brotli": c, "lzma": d}\n'
    default = 'default = "zstd"\n'
    assert folded(table, key, default=default) == 'CODECS = {"zstd": a}\n'
    header = 'def header(data):\n    return compress(data, "zlib")\n'
    assert folded(table, key, default=default, header=header) == 'CODECS = {"zstd": a, "zlib": b}\n'
    other = 'LEVELS = {"zstd": 1, "zlib": 2, "brotli": 3}\n'  # no table of all codecs: its words count
    assert folded(table, key, other=other) == 'CODECS = {"zstd": a, "zlib": b, "brotli": c}\n'
    unlike = 'CODECS = {"zstd": a, "other": b}\n'
    assert folded(unlike, key, default=default) == unlike
    numbers = "FLOATS = {16: a, 32: b}\n"  # also the choices of export.vector_bits
    assert folded(numbers, key) == numbers
    changeable = freeze(CONFIG, {"export.codec"})
    assert folded(table, key, changeable, default=default) == table


def test_what_nothing_makes_is_none() -> None:
    source = """\
def f(x, recorder: Recorder | None = None, product: SymmetricProduct | None = None) -> Score | Data | None:
    if recorder is not None and product is not None:
        recorder.show(x)
    return product(x) if recorder is None else recorder
"""
    expected = """\
def f(x, recorder: None = None, product: SymmetricProduct | None = None) -> None:
    return product(x)
"""
    key = ("pargolf.train.loop", "f")
    assert folded(source, key) == expected
    made = read_module("pargolf.train.recorder").nodes["pargolf.train.recorder", "Recorder"]
    node = parse(source)
    assert code_of(fold({key: node, ("pargolf.train.recorder", "Recorder"): made}, {})[key]) == (
        source.replace("Score | Data | None", "None")
    )
