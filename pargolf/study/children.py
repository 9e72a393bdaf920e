"""What ablations and sweeps share: many runs in one folder, each a `pargolf run` in its own process."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.config.settings import flatten, read_config, to_dict, with_settings
from pargolf.data.dataset import load_data
from pargolf.run.folder import Run, first_difference
from pargolf.study.compare import NOT_COMPARED
from pargolf.system import files, launch, machine
from pargolf.system.errors import Stopped, UserError, require
from pargolf.train.runs import prepare_data

POLL_SECONDS = 0.2
LONGEST_NAME = 100  # characters of a run's name, before a hash replaces it


@dataclass(frozen=True)
class Job:
    """A run to be made, or to be finished."""

    config: RunConfig
    folder: Path

    @property
    def finished(self) -> bool:
        return Run(self.folder).result.exists()


@dataclass(frozen=True)
class Outcome:
    """How a job's process ended."""

    job: Job
    error: str
    """One line, empty if the run is scored."""
    given_up: bool
    """Stopped on purpose, by `hopeless`."""


def refuse_incomparable(name: str) -> None:
    """UserError if a comparison could not tell runs apart by the setting `name`."""
    if name == "train.seed":
        raise UserError(
            "train.seed is what every variation is repeated over; set --seeds, or its first value"
        )
    if name in NOT_COMPARED:
        raise UserError(f"{name} does not change a score, so runs are not compared by it")


def run_name(settings: Mapping[str, Any], overlays: str = "") -> str:
    """A folder's name for a run of these overlays ("+a+b") and settings: the same for the same ones."""
    words = [overlays] if overlays else []
    name = ",".join(words + [f"{name}={value}" for name, value in settings.items()]).replace("/", "_")
    return name if len(name) <= LONGEST_NAME else hashlib.sha256(name.encode()).hexdigest()[:10]


def settle(base: RunConfig, recorded: RunConfig | None, folder: Path) -> RunConfig:
    """The settings that all runs of a study start from: `base`, its compute dtype chosen once for all.

    "auto" times a multiply; left to each run, it could choose differently from one to the next.
    Raises UserError if the study in `folder` was begun (`recorded`) with other settings.
    """
    if base.train.dtype == "auto":
        dtype = recorded.train.dtype if recorded else _fastest_dtype(base)
        base = with_settings(base, {"train.dtype": dtype})
    if recorded and recorded != base:
        raise UserError(
            f"{folder} holds a study with other settings ({first_difference(recorded, base)});"
            " choose another --name or remove it"
        )
    return base


def _fastest_dtype(config: RunConfig) -> str:
    return machine.resolve_dtype("auto", machine.resolve_device(config.train.device))


def refuse_changed(job: Job) -> None:
    """UserError if a job's folder holds a finished run of other settings, by an overlay since edited."""
    if not job.finished:
        return
    done, asked = (flatten(to_dict(c)) for c in (read_config(Run(job.folder).config), job.config))
    for name, value in asked.items():
        require(
            name in NOT_COMPARED or value in ("auto", done[name]),
            f"{job.folder} holds a run with other settings ({name} is {done[name]} there, {value} here);"
            " choose another --name or remove it",
        )


def check_at_once(jobs: int) -> None:
    """UserError unless so many runs can be made side by side."""
    require(jobs >= 1, f"--jobs {jobs} must be at least 1")


def check_data(configs: Iterable[RunConfig]) -> None:
    """Make or open the data of all runs, so that a mistake shows before the first one starts."""
    for config in {(c.data, c.model.vocab_size): c for c in configs}.values():
        prepare_data(config)
        load_data(config)


def locked(folder: Path) -> contextlib.AbstractContextManager[int | None]:
    """Hold a study's folder, which its processes do too, so that no run is ever written by two."""
    taken = "is in use by another command, or by runs of one that was killed; wait for them"
    return files.locked(folder, taken)


def run_jobs(
    jobs: Iterable[Job], at_once: int, lock: int | None, hopeless: Callable[[Job], bool] = lambda job: False
) -> Iterator[Outcome]:
    """Run jobs, `at_once` at a time, and yield each one's outcome as it ends; a job is asked for when its
    turn comes.

    A job that `hopeless` says is not worth finishing is stopped. On SIGINT or SIGTERM every
    process is passed the signal, saves its checkpoint and is waited for; then raises Stopped.
    """
    waiting, running, given_up = iter(jobs), dict[subprocess.Popen[bytes], Job](), set[Job]()
    with _noted_signals() as received:
        passed_on = 0
        try:
            while True:
                while len(running) < at_once and not received and (job := next(waiting, None)):
                    running[_start(job, at_once, lock)] = job
                if not running:
                    break
                time.sleep(POLL_SECONDS)
                for number in received[passed_on:]:
                    for process in running:
                        process.send_signal(number)
                    passed_on += 1
                for process, job in list(running.items()):
                    if process.poll() is not None:
                        del running[process]
                        if not received:
                            yield Outcome(job, _error(job, process.returncode), job in given_up)
                    elif not received and job not in given_up and hopeless(job):
                        given_up.add(job)
                        process.terminate()
        finally:
            for process in running:  # left over only if the caller failed
                process.terminate()
                process.wait()
    if received:
        raise Stopped(received[0], "the runs saved their checkpoints")


def options(preset: RunConfig, config: RunConfig) -> list[str]:
    """The command-line options that turn `preset` into `config`."""
    before, words = flatten(to_dict(preset)), []
    for name, value in flatten(to_dict(config)).items():
        if value == before[name]:
            continue
        section, field = name.split(".")
        flag = f"--{section}.{'' if value else 'no-'}{field}"
        words.append(flag if isinstance(value, bool) else f"--{name}={value}")
    return words


def _start(job: Job, at_once: int, lock: int | None) -> subprocess.Popen[bytes]:
    job.folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if at_once > 1:  # they share the cores; one alone keeps what the user or PyTorch chose
        threads = environment.get("OMP_NUM_THREADS", "")
        given = int(threads) if threads.isdigit() else launch.cores()
        environment["OMP_NUM_THREADS"] = str(max(1, given // at_once))
    command = [
        sys.executable, "-m", "pargolf", "run", job.config.preset,
        "--runs", str(job.folder.parent), "--name", job.folder.name,
        *options(load_preset(job.config.preset), job.config),
    ]  # fmt: skip
    with open(job.folder / "stderr.log", "wb") as errors:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # train.log and result.json have it
            stderr=errors,
            env=environment,
            # A session of its own: the terminal's Ctrl-C reaches it once, through run_jobs.
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
        )


def _error(job: Job, code: int) -> str:
    if job.finished:  # though it may exceed its budget, which its exit code tells
        return ""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = (job.folder / "stderr.log").read_text(errors="replace").split("\n")
    ours = [line for line in lines if line.startswith("pargolf: ")]
    last = [line for line in ours or lines if line.strip()][-1:]
    return last[0].removeprefix("pargolf: error: ") if last else f"exit code {code}"


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Within the block SIGINT and SIGTERM are only noted, in the list."""
    received: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
