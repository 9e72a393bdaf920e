"""Progress bars on a terminal, and nothing of them in a pipe."""

from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress
from rich.segment import Segment

from pargolf.system import launch
from pargolf.system.escape import visible


class _Visible(Console):
    """Shows the control characters in what it prints, such as names and settings of a run, and obeys none."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text, "\n"))

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for the command line to end by, as after a plain print


# Under torchrun the other ranks have the same to say: one speaks.
console = _Visible(quiet=not launch.is_main())


def say(line: str) -> None:
    """Print one line as it is: not colored, not wrapped."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


class Bar:
    """A progress bar for the length of a `with` block; call it with how much is done, and of how much.

    `in_bytes`: what is done are bytes, and the bar shows how many a second. Piped, it draws nothing:
    the log's plain lines tell the progress.
    """

    def __init__(self, title: str, in_bytes: bool = False):
        self._progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            *([TransferSpeedColumn()] if in_bytes else []),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal or console.quiet,
        )
        self._task = self._progress.add_task(title, total=None)

    def __call__(self, done: float, total: float) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def rename(self, title: str) -> None:
        """Say something else before the bar."""
        self._progress.update(self._task, description=title)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
