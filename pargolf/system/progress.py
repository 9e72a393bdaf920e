"""How work that takes a while tells how far it is: it calls a function, which may draw a bar."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

# Called with how much is done, and of how much.
OnProgress = Callable[[float, float], None]
# Opens a bar with a title for the length of a `with` block.
Bars = Callable[[str], AbstractContextManager[OnProgress]]


def unseen(done: float, total: float) -> None:
    """Show nothing."""


@contextmanager
def no_bar(title: str) -> Iterator[OnProgress]:
    """A bar that nobody sees."""
    yield unseen
