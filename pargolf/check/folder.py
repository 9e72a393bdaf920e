"""A stranger's folder, looked at without trusting it: no links out, no odd files, no huge reads."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from pargolf.system.errors import UserError

MOST_FILES = 10_000


class Unreadable(Exception):
    """A file that is not read: too large, or refused by the system. The message says why."""


@dataclass(frozen=True)
class Folder:
    """The regular files below `root`, and what else lies there that no submission needs."""

    root: Path
    sizes: dict[str, int]
    """Bytes of each file by its path below the root, in alphabetical order."""
    oddities: tuple[str, ...]
    """Links that leave the folder, devices, pipes, too many files: one line each."""

    def read(self, name: str, limit: int) -> bytes:
        """The content of a file; Unreadable if it holds more than `limit` bytes."""
        try:
            with open(self.root / name, "rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise Unreadable(f"{name}: {error.strerror or error}") from None
        if len(data) > limit:
            raise Unreadable(f"{name} has {self.sizes[name]:,} bytes; more than {limit:,} are not read")
        return data

    def read_text(self, name: str, limit: int) -> str:
        """The same as text; bytes that are no UTF-8 become U+FFFD."""
        return self.read(name, limit).decode("utf-8", errors="replace")


def open_folder(root: Path) -> Folder:
    """List a folder without following links to folders; UserError if it is none."""
    if not root.is_dir():
        raise UserError(f"{root} is no folder; give the folder of a submission")
    sizes: dict[str, int] = {}
    oddities: list[str] = []
    entries = 0
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            entries += 1
            if entries > MOST_FILES:
                return Folder(root, sizes, (*oddities, f"more than {MOST_FILES:,} files"))
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            oddity = _oddity(root, path)
            if oddity:
                oddities.append(f"{relative} {oddity}")
            elif path.is_file():
                sizes[relative] = path.stat().st_size
    return Folder(root, dict(sorted(sizes.items())), tuple(oddities))


def _oddity(root: Path, path: Path) -> str:
    """What is wrong with one entry; empty if it is a file, a folder, or a link to one in here."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: a loop of links
            return "is a broken link"
        if not target.is_relative_to(root.resolve()):
            return "is a link that leaves the folder"
        mode = target.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return "is neither a file nor a folder"
    return ""
