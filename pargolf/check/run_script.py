"""Running a stranger's train_gpt.py, on demand, with limits of time and memory.

The limits keep an accident from taking the machine; they are no sandbox. Code that is not trusted
belongs in a container or on a machine of its own.
"""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pargolf.check.evidence import CODE, Evidence, Finding, finding
from pargolf.system.errors import UserError

LARGEST_FILE = 1 << 30  # bytes of a file that the run may write
LARGEST_FOLDER = 1 << 30  # bytes of a folder that is copied to run in
TAIL = 16_384  # bytes at the end of what it printed
# What a run needs of the environment: programs, libraries, devices, and the knobs of the
# challenge's own script. Everything else, secrets above all, stays out.
PASSED_ON = (
    "CUDA_VISIBLE_DEVICES", "DATA_PATH", "ITERATIONS", "LANG", "LC_ALL", "LD_LIBRARY_PATH",
    "MAX_WALLCLOCK_SECONDS", "OMP_NUM_THREADS", "PATH", "SEED", "TOKENIZER_PATH", "VOCAB_SIZE",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a run may take."""

    seconds: int
    memory_gb: float
    """Address space in 10^9 bytes; 0 means no limit (CUDA reserves far more than it uses)."""


def run_submission(evidence: Evidence, limits: Limits) -> Finding:
    """Run train_gpt.py in a copy of its folder, as `python train_gpt.py`, and report its last line."""
    rule = "run"
    if limits.seconds < 1 or limits.memory_gb < 0:
        raise UserError("--run-seconds must be at least 1, and --run-memory-gb not negative")
    if CODE not in evidence.folder.sizes:
        return finding(rule, "not checked", f"there is no {CODE}")
    if evidence.folder.oddities or sum(evidence.folder.sizes.values()) > LARGEST_FOLDER:
        return finding(rule, "not checked", "not run: the folder holds odd files, or more than 1 GiB")
    with tempfile.TemporaryDirectory(prefix="pargolf-run-") as place:
        copy, output = Path(place, "submission"), Path(place, "output")
        shutil.copytree(evidence.folder.root, copy, symlinks=True)
        code = _run(copy, output, limits)
        last = _last_line(output)
    if code is None:
        return finding(rule, "not checked", f"still running after {limits.seconds} s, then stopped; {last}")
    return finding(rule, "fault" if code else "ok", f"exit code {code}; {last}")


def _run(folder: Path, output: Path, limits: Limits) -> int | None:
    """The exit code, or None if the time ran out; nothing of the process group survives."""

    def restrict() -> None:
        if limits.memory_gb:
            resource.setrlimit(resource.RLIMIT_AS, (int(limits.memory_gb * 1e9),) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    with open(output, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, CODE],
            cwd=folder,
            env=environment | {"HOME": str(folder), "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=restrict,
        )
    try:
        return process.wait(limits.seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ended, and left no children
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(output: Path) -> str:
    with open(output, "rb") as file:
        file.seek(max(0, output.stat().st_size - TAIL))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"last line: {last}" if last else "it printed nothing"
