"""Self-contained HTML pages from the templates beside this file: no scripts, no requests, text escaped."""

from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import pargolf
from pargolf.score.passages import LEVELS, level
from pargolf.system.escape import visible


@dataclass(frozen=True)
class Missing:
    """A part that a page cannot show, and why."""

    why: str


def render(template: str, **values: Any) -> str:
    """A template of this folder with `values` in it; the same values give the same bytes."""
    environment = Environment(
        loader=PackageLoader("pargolf.analysis", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests["missing"] = lambda part: isinstance(part, Missing)
    environment.filters |= {"level": level, "visible": visible, "zip": zip}
    environment.globals |= {"levels": LEVELS, "version": pargolf.__version__}
    return environment.get_template(template).render(values)
