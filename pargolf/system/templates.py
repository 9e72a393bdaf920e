"""Markdown files from the Jinja templates that lie beside the modules which fill them in."""

import shlex
from importlib import resources
from typing import Any


def render(package: str, template: str, /, **values: Any) -> str:
    """`template` of `package` with `values`; jinja2.UndefinedError if it asks for one more."""
    import jinja2

    text = (resources.files(package) / template).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["quote"] = shlex.quote  # for a shell
    return environment.from_string(text).render(**values)
