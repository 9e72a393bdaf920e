"""A small package of its own, bundled: however its code is written, the file does what the package does."""

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pargolf.bundle import evaluate, modules
from pargolf.bundle.evaluate import freeze
from pargolf.bundle.layout import write_out
from pargolf.bundle.single_file import _defaults, _reduce

SETTINGS = '''\
from dataclasses import dataclass, field
from typing import Annotated, Literal

# Of every width.
LOW, HIGH = 1, 65_536


@dataclass(frozen=True)
class Bounds:
    low: int
    high: int


@dataclass(frozen=True)
class ModelConfig:
    d_model: Annotated[int, Bounds(LOW, HIGH)] = 512
    """Width."""
    n_heads: Annotated[int, Bounds(1, 64)] = 8
    mlp: Literal["relu", "gelu"] = "relu"

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def d_mlp(self) -> int:
        return 4 * self.d_model


@dataclass(frozen=True)
class RunConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
'''
PROGRAM = """\
from typing import Annotated, Protocol, get_args, get_type_hints

from TOY import settings
from TOY.settings import ModelConfig, RunConfig


class Kernel(Protocol):
    def __call__(self, x: int) -> int: ...


class Cache:
    pass


class Layer:
    def __init__(self, c: ModelConfig, kernel: Kernel | None = None, cache: Cache | None = None):
        self.c, self.kernel, self.cache = c, kernel, cache

    def forward(self, x: int) -> int:
        x = self.kernel(x) if self.kernel is not None else x
        return gelu(x) if self.c.mlp == "gelu" else 2 * relu(x)


class Shifting:
    def __init__(self, c: ModelConfig):
        self.c = c

    def shift(self, c) -> None:
        self.c = c

    def forward(self, x: int) -> int:
        self.shift(self.c)
        return x if self.c.mlp == "relu" else -x


def relu(x: int) -> int:
    return max(0, x)


def gelu(x: int) -> int:
    return x


def double(x: int, bounds: "settings.Bounds | None" = None) -> int:
    if (bounds is not None) or x > 3:
        return 2 * x
    return x


def called(c: ModelConfig, kernel: Kernel | None = None) -> int:
    if kernel is None:
        return 0
    return kernel(c.d_head)


def heads(config: RunConfig) -> list[int]:
    model = config.model
    if model.n_heads > 4:
        return [model.d_head] * 8
    return []


def main() -> tuple[object, ...]:
    config = RunConfig()
    kind, bounds = get_args(get_type_hints(ModelConfig, include_extras=True)["d_model"])
    layer = Layer(config.model, double)
    numbers = kind, bounds.low, bounds.high, settings.HIGH, layer.forward(7), called(config.model, double)
    return *numbers, heads(config), config.model.n_heads, Shifting(config.model).forward(5)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package with these two modules."""
    name = f"toy{tmp_path.name}".replace("-", "_")
    (tmp_path / name).mkdir()
    for module, text in (("__init__", ""), ("settings", SETTINGS), ("program", PROGRAM)):
        (tmp_path / name / f"{module}.py").write_text(text.replace("TOY", name))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(modules, "PACKAGE", name)
    monkeypatch.setattr(evaluate, "RunConfig", importlib.import_module(f"{name}.settings").RunConfig)
    yield name
    for module in [key for key in sys.modules if key.partition(".")[0] == name]:
        del sys.modules[module]


def bundled(toy: str, config: Any, changeable: set[str], tmp_path: Path) -> tuple[str, Any]:
    """The file of the toy's program under `config`, as text and as a module."""
    entries = [(f"{toy}.program", "main")]
    source = write_out(_reduce(_defaults(config), entries, freeze(config, changeable)), entries, "A toy.")
    file = tmp_path / "single.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location("single", file)
    assert spec and spec.loader
    module = sys.modules["single"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    del sys.modules["single"]
    return source, module


@pytest.mark.parametrize("mlp", ["relu", "gelu"])
def test_the_file_does_what_the_package_does(toy: str, mlp: str, tmp_path: Path) -> None:
    program = importlib.import_module(f"{toy}.program")
    model = dataclasses.replace(program.ModelConfig(), mlp=mlp)
    source, single = bundled(toy, program.RunConfig(model), set(), tmp_path)
    sys.modules["single"] = single  # where get_type_hints looks for names
    expected = list(program.main())
    expected[4], expected[-1] = (14, -5) if mlp == "gelu" else (28, 5)
    assert list(single.main()) == expected
    del sys.modules["single"]
    assert ("def gelu" in source, "def relu" in source) == (mlp == "gelu", mlp == "relu")


def test_what_stays_and_what_goes(toy: str, tmp_path: Path) -> None:
    program = importlib.import_module(f"{toy}.program")
    source, _ = bundled(toy, program.RunConfig(), {"model.n_heads"}, tmp_path)
    # A property that is read stays one, since n_heads varies; so do names that an annotation evaluates.
    assert "def d_head" in source and "d_mlp" not in source
    assert "d_model: Annotated[int, Bounds(LOW, HIGH)] = 512\n" in source
    assert "# Of every width.\nLOW = 1\nHIGH = 65_536\n" in source
    assert "if model.n_heads > 4:" in source
    # The kernel is whatever fits the Protocol; a cache is nothing, as nothing makes one.
    assert "kernel: Kernel | None = None, cache: None = None" in source
    # What else is assigned to an attribute is not known; it may be other settings.
    assert "return 2 * relu(x)" in source and 'return x if self.c.mlp == "relu" else -x' in source
