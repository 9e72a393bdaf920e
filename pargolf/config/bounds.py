"""Where the numbers of a configuration must lie: said at each field, checked for all by one function."""

import math
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, get_type_hints

from pargolf.system.errors import require


@dataclass(frozen=True)
class Bounds:
    """The numbers that a setting may be, as in `n_layers: Annotated[int, Bounds(2, 1000)]`."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def admit(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        if math.isfinite(self.least) and math.isfinite(self.most):
            return f"in {self.least}..{self.most}"
        words = {"at least": self.least, "at most": self.most, "above": self.above, "below": self.below}
        return " and ".join(f"{word} {bound}" for word, bound in words.items() if math.isfinite(bound))


Count = Annotated[int, Bounds(1)]
Natural = Annotated[int, Bounds(0)]
Positive = Annotated[float, Bounds(above=0)]
NotNegative = Annotated[float, Bounds(0)]
Share = Annotated[float, Bounds(0, 1)]
Decay = Annotated[float, Bounds(0, below=1)]  # of a running average, a step


def check_fields(part: Any, path: str = "") -> None:
    """UserError naming the first field of a dataclass of settings, or of one in it, that is out of bounds."""
    for name, hint in get_type_hints(type(part), include_extras=True).items():
        full, value = f"{path}.{name}" if path else name, getattr(part, name)
        if is_dataclass(value):
            check_fields(value, full)
            continue
        require_plain(full, value)
        for bounds in getattr(hint, "__metadata__", ()):
            require(bounds.admit(value), f"{full} must be {bounds}, is {value}")


def require_plain(path: str, value: Any) -> None:
    """UserError unless a value can be written to a file, and to a program, and be read back the same."""
    require(not isinstance(value, float) or math.isfinite(value), f"{path} must be finite, is {value!r}")
    if isinstance(value, str):
        surrogates = any("\ud800" <= char <= "\udfff" for char in value)
        require(not surrogates, f"{path} is no Unicode text: {value!r}")
