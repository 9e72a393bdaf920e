"""Bounds at the fields: which numbers they admit, in which words, wherever the field is."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated

import pytest

from pargolf.config.bounds import Bounds, Count, Decay, Positive, Share, check_fields
from pargolf.system.errors import UserError


@dataclass(frozen=True)
class Inner:
    count: Count = 1
    share: Share = 0.5
    decay: Decay = 0.9
    positive: Positive = 1.0
    layers: Annotated[int, Bounds(2, 9)] = 2
    free: float = -1.0
    name: str = ""


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    share: Share = 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "inner.count must be at least 1, is 0"),
        ({"share": -0.5}, "inner.share must be in 0..1, is -0.5"),
        ({"decay": 1.0}, "inner.decay must be at least 0 and below 1, is 1.0"),
        ({"positive": 0.0}, "inner.positive must be above 0, is 0.0"),
        ({"layers": 10}, "inner.layers must be in 2..9, is 10"),
        ({"free": math.nan}, "inner.free must be finite, is nan"),
        ({"name": "\ud800"}, "inner.name is no Unicode text"),
    ],
)
def test_what_is_out_of_bounds_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_fields(Outer(dataclasses.replace(Inner(), **values)))  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_the_bounds_themselves_are_within() -> None:
    check_fields(Outer())
    check_fields(Outer(Inner(count=1, share=1.0, decay=0.0, positive=1e-300, layers=9)))
    with pytest.raises(UserError, match=r"^share must be in 0\.\.1, is 2"):
        check_fields(Outer(share=2))
