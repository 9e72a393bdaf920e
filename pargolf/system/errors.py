"""The exceptions that are part of normal use, as opposed to "pargolf is wrong"."""

import difflib
from collections.abc import Iterable

from pargolf.system.escape import visible


class UserError(Exception):
    """Bad input, setting, file or machine state that the user can mend.

    The message is one line: what is wrong and what to do. The command line prints it
    without a traceback and exits with code 2. Words of a file in it cannot steer a terminal.
    """

    def __str__(self) -> str:
        return visible(super().__str__(), " ")


class Mismatch(UserError):
    """Files that do not belong together: any figure made of them would be false."""


class Stopped(Exception):
    """The work was asked to stop by SIGINT or SIGTERM; what was done is saved."""

    def __init__(self, signal_number: int, where: str):
        super().__init__(f"{where}; the same command continues from there")
        self.signal_number = signal_number


def require(holds: bool, message: str) -> None:
    """Raise UserError with `message` unless `holds`."""
    if not holds:
        raise UserError(message)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: "; did you mean ...?", or "" if nothing is near."""
    nearest = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
