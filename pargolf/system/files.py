"""Writing files so that a crash, a full disk or a second process never leaves half of one."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pargolf.system.errors import UserError, require

LOCK = ".lock"


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step: temporary file in the same folder, fsync, rename.

    Raises OSError (disk full, read-only folder), which names `path`; the old file is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk does not say which file it has no space for
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; ValueError on numbers that JSON has no word for."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


@contextmanager
def locked(folder: Path, refusal: str) -> Iterator[int | None]:
    """Hold a folder for the length of the block; yields the lock's file descriptor.

    Processes that inherit the descriptor hold it as well: it stays until the last of them has ended, even if
    this one is killed. UserError with `refusal` if it is taken. None where there is no such lock: in a
    folder that cannot be written to, and on file systems without.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / LOCK, "ab"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} {refusal}") from None
        except OSError:
            yield None
            return
        yield file.fileno()


def is_locked(folder: Path) -> bool:
    """Whether some process holds the folder (see `locked`), as far as that can be told."""
    try:
        with open(folder / LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def require_new(folder: Path) -> None:
    """UserError if there is something at `folder` already, unless it is an empty folder."""
    free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    require(free, f"{folder} is there already; name another --out")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `folder` at the end, or goes if anything is raised before.

    Raises UserError if `folder` is not new (see `require_new`).
    """
    require_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        temporary.chmod(0o755)
        yield temporary
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which replaces `folder` at the end; if anything is raised, `folder` stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp") as place:
        new, old = Path(place) / "new", Path(place) / "old"
        new.mkdir()
        yield new
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in chunks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
