"""The house's arrows: what imports what. No arrow climbs, and none hides inside a function."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HOUSE = Path(__file__).parents[1] / "pargolf"

# Floors from the ground up, a line each; loose modules are rooms too. A room imports from the floors
# below its own, so rooms of one floor know nothing of each other: `export` knows no model. The package
# itself, `pargolf`, is a door: it gives its version to all, and `load` to programs outside.
FLOORS = """
    system challenge
    config
    data model export
    optim score
    kernels run
    fit
    train plan library
    bundle verify study compress
    check analysis huggingface submission
    cli
    __main__
"""

# Imports inside functions: of packages that are optional or slow, and of ours in what answers before
# PyTorch is there.
LATE_PACKAGES = {
    "gensim", "huggingface_hub", "jinja2", "pyarrow", "pyppmd", "python_minifier", "scipy",
    "torch.utils.tensorboard", "wandb",
}  # fmt: skip
QUICK = {"pargolf", "pargolf.cli"}


@dataclass(frozen=True)
class Import:
    """One module imported by another, both by their full names."""

    by: str
    of: str
    late: bool
    """Inside a function."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(HOUSE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in HOUSE.rglob("*.py")}


def imports(name: str) -> Iterator[Import]:
    """Every import of a module, wherever in it: also under TYPE_CHECKING and inside functions."""

    def walk(node: ast.AST, late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(name, alias.name, late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.module and not child.level, f"{name} imports relatively"
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    yield Import(name, whole if whole in MODULES else child.module, late)
            yield from walk(child, late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from walk(ast.parse(MODULES[name].read_text()), False)


IMPORTS = [found for name in sorted(MODULES) for found in imports(name)]
FLOOR = {room: n for n, line in enumerate(FLOORS.strip().splitlines()) for room in line.split()}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_its_floor() -> None:
    assert {room(name) for name in MODULES if name != "pargolf"} == FLOOR.keys()


def test_no_arrow_climbs() -> None:
    climbs = {
        (found.by, found.of)
        for found in IMPORTS
        if found.of in MODULES and "pargolf" not in (found.by, found.of)
        if room(found.by) != room(found.of) and FLOOR[room(found.of)] >= FLOOR[room(found.by)]
    }
    assert not climbs


def test_no_import_hides_in_a_function() -> None:
    late = {
        (found.by, found.of)
        for found in IMPORTS
        if found.late and ".".join(found.by.split(".")[:2]) not in QUICK
        if not any(f"{found.of}.".startswith(f"{package}.") for package in LATE_PACKAGES)
    }
    assert not late
