"""The command line: which commands there are, and what becomes of their errors."""

import errno
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any, TextIO

from pargolf import __version__
from pargolf.cli import completion, compress, explain, export, runs, study, submit
from pargolf.config.presets import known_names
from pargolf.system import launch
from pargolf.system.errors import Stopped, UserError, did_you_mean
from pargolf.system.escape import visible
from pargolf.system.threads import wait_briefly

# Seconds that another rank gives the first one to say what is wrong.
PATIENCE = 10.0

# In the order of the work, as `pargolf` alone shows them.
COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "data": runs.data,
    "plan": runs.plan,
    "config": runs.config,
    "train": runs.train,
    "pack": runs.pack,
    "eval": runs.evaluate,
    "run": runs.run,
    "list": runs.show_list,
    "sample": runs.sample,
    "explain": explain.explain,
    "compress": compress.compress,
    "decompress": compress.decompress,
    "export": export.export,
    "analyze": study.analyze,
    "compare": study.compare,
    "ablate": study.ablate,
    "sweep": study.sweep,
    "predict": study.predict,
    "report": study.report,
    "submit": submit.submit,
    "check": submit.check,
    "verify": submit.verify,
    "import-log": submit.import_log,
    "completion": completion.completion,
}


def main() -> None:
    """Entry point of `pargolf`: exit code 0, 2 for bad input, 128 + n when stopped by signal n."""
    wait_briefly()
    sys.exit(dispatch(sys.argv[1:]))


def dispatch(argv: list[str]) -> int:
    """Run one command line; returns its exit code."""
    try:
        try:
            _answer(argv)
        finally:
            print(end="", flush=True)  # at the interpreter's exit nobody would catch what this raises
        return 0
    except UserError as error:
        return _fail(str(error))
    except Stopped as stop:
        _fail(str(stop), "stopped")
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        _let_go(sys.stdout)
        return 128 + signal.SIGPIPE
    except OSError as error:  # a full disk, a folder without permission
        _let_go(sys.stdout)  # it may be what is full
        message = (error.strerror or str(error)) + (f": {error.filename}" if error.filename else "")
        room = "; free some space, then give the same command again" if error.errno == errno.ENOSPC else ""
        return _fail(visible(message, " ") + room)
    except RuntimeError as error:  # of PyTorch, which has a class of its own for a GPU's memory only
        full = next((line for line in str(error).splitlines() if "No space left" in line), "")
        if full:  # said by the compiler that PyTorch calls
            return _fail(f"compiling: {visible(full, ' ')}; free some space, or set TMPDIR to another folder")
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
            raise
        reason = visible(str(error).partition("\n")[0], " ")
        return _fail(
            f"not enough memory ({reason}); take a smaller model, or smaller pieces:"
            " more train.micro_batches, less eval.batch_rows"
        )


def _answer(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if argv[0] in ("-V", "--version"):
        print(f"pargolf {__version__}")
        return
    if argv[0] not in COMMANDS:
        near = did_you_mean(argv[0], COMMANDS)
        raise UserError(f"no command '{argv[0]}'{near} (there are: {', '.join(COMMANDS)})")
    COMMANDS[argv[0]](argv[1:])


def _fail(message: str, kind: str = "error") -> int:
    if not launch.speaks():
        # Mostly the first rank failed the same way; it says so, and torchrun then ends this one. Did this
        # one leave first, torchrun would end the first before it speaks. Who is still here speaks.
        time.sleep(PATIENCE)
    try:
        print(f"pargolf: {kind}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    except OSError:
        _let_go(sys.stderr)
    return 2


def _let_go(stream: TextIO) -> None:
    """Drop what is left to write, if it cannot be written, before the interpreter's exit tries again."""
    try:
        print(end="", file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {_first_line(function)}" for name, function in COMMANDS.items()]
    return "\n".join(
        ["usage: pargolf COMMAND ... (--help after a command for its options)", "", *lines, "",
         *(textwrap.fill(line, 80, subsequent_indent="  ", break_on_hyphens=False)
           for line in known_names().split("; ")),
         "a preset with overlays laid over it: pargolf run demo+legendre-mix"]
    )  # fmt: skip


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").splitlines()[0]
