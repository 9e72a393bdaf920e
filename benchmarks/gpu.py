"""Everything that only a GPU can tell, in parts of at most ten minutes: make gpu.

    python benchmarks/gpu.py --gpu-minutes 30 --text articles.jsonl
    python benchmarks/gpu.py --rehearse

Each part is a process of its own. As it ends, its figures go into gpu/gpu.json, which gpu/gpu.html shows.
The same command goes on with the parts that are missing or failed. What is timed has the first GPU to itself;
what is trained has them all.
"""

import contextlib
import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn
from xml.etree import ElementTree

import adapt
import attention
import kernels
import score
import torch
import train
import tyro
from figures import Figures, Rows

import pargolf
from pargolf.analysis.pages import render
from pargolf.config.presets import load_preset
from pargolf.system.console import say
from pargolf.system.errors import Stopped, UserError, did_you_mean, require
from pargolf.system.escape import visible
from pargolf.system.files import locked, write_atomic, write_json

ROOT = Path(__file__).resolve().parents[1]
SEED, RECORD = "lowrank-q192", "record-0427"
# ms of a step of one GPU's share of the batch, on one H100 or H200
SEED_GOAL, RECORD_GOAL = 38.0, 106.0
GOAL_CARDS = ("H100", "H200")
ASKED = 11 / 12  # of a part's limit: then it is asked to end, and at the limit killed
# A training in rehearsal
LITTLE = (
    "--model.q-rank=0", "--train.iterations=4", "--train.batch-tokens=512", "--train.dtype=float32",
    "--train.compile=off",
)  # fmt: skip
LEFT_OUT = ("tilt 2", "lora, warm", "lora, 3 phases", "lora, tilt 2")  # of the forms of scoring


@dataclass(frozen=True)
class Args:
    """Measure all that a GPU is needed for."""

    text: tuple[Path, ...] = ()
    """Text to train on, as for `pargolf data --text`; default: the embedded articles."""
    gpu_minutes: float = 10.0
    """Minutes of training by the run's own clock."""
    preset: str = SEED
    """What is trained: a preset, or one with overlays."""
    only: tuple[str, ...] = ()
    """Names of the parts to run; default: all."""
    out: Path = Path("gpu")
    """Folder for gpu.json, gpu.html, data, runs, and what each part printed."""
    limit: float = 600.0
    """Seconds that one process of a part may take."""
    rehearse: bool = False
    """Run all parts on the CPU with tiny shapes: minutes, and figures that say nothing of a GPU."""


@dataclass(frozen=True)
class Part:
    """A command line, and where its figures are."""

    name: str
    command: list[str]
    left: Path
    """What the command leaves."""
    read: Callable[[Path], Figures]
    """Figures from `left`."""
    rows: Callable[[Figures], Rows]
    """Those as a table."""
    goal_ms: float | None = None
    """The most that the step of the last form may take."""
    goes_on: int = 0
    """How often it may be started again where it was stopped at its limit."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The command as one would type it."""
        return shlex.join(["python", *self.command[1:]])


def parts_of(args: Args, gpus: int) -> list[Part]:
    """All parts in their order; `gpus` to train on, 0 in a rehearsal."""
    folder, small = args.out / "parts", args.rehearse
    first = {"CUDA_VISIBLE_DEVICES": "" if small else first_gpu()}

    def benchmark(name: str, module: ModuleType, *options: object, goal_ms: float | None = None) -> Part:
        left = folder / f"{name}.json"
        command = [sys.executable, str(module.__file__), *map(str, options), f"--figures={left}"]
        return Part(name, command, left, read_json, module.in_rows, goal_ms, environment=first)

    seed, record = ("demo", f"{RECORD}+small") if small else (SEED, RECORD)
    seed_rows, record_rows = ("--rows=1", "--rows=1") if small else ("--rows=64", "--rows=48")
    turns = ["--turns=2", "--eager"] if small else ["--turns=15"]
    steps = ["--steps=2", "--eager"] if small else ["--steps=10"]
    one, few = (["--rows=1"], ["--tokens=600", "--repeats=1"]) if small else ([], [])
    most = "--tokens=1000" if small else "--tokens=250000"
    xml = folder / "tests.xml"
    tests = [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests/test_gpu.py"), f"--junitxml={xml}"]
    data, training = data_and_training(args, gpus)
    return [
        Part("tests", tests, xml, read_junit, rows_of_tests, environment=first),
        benchmark(f"step-{SEED}", train, seed, seed_rows, *turns, goal_ms=SEED_GOAL),
        benchmark(f"step-{RECORD}", train, record, record_rows, *turns, goal_ms=RECORD_GOAL),
        benchmark(f"kernels-{SEED}", kernels, seed, seed_rows, *steps),
        benchmark(f"kernels-{RECORD}", kernels, record, record_rows, *steps),
        benchmark("attention", attention, *one, *turns),
        data,
        training,
        benchmark("scoring", score, training.left, *few),
        benchmark("adaptation", adapt, training.left, most, "--leave-out", *LEFT_OUT),
    ]


def data_and_training(args: Args, gpus: int) -> tuple[Part, Part]:
    """Shards of the text, and a run on them: by the clock, on all GPUs."""
    vocab = 512 if args.rehearse else load_preset(args.preset).model.vocab_size
    name = re.sub(r"\W+", "_", args.text[0].name.partition(".")[0]).strip("_") if args.text else "demo"
    dataset = args.out / f"data/datasets/{name}_sp{vocab}"
    text = ["--name", name, "--text", *map(str, args.text)] if args.text else []
    pargolf = ["-m", "pargolf"]
    data = [sys.executable, *pargolf, "data", f"--root={args.out}/data", f"--vocab-size={vocab}", *text]
    run = args.out / f"runs/{args.preset.replace('/', '_')}-{dataset.name}-{args.gpu_minutes:g}min"
    ranks = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}"] if gpus > 1 else []
    command = [
        sys.executable, *ranks, *pargolf, "run", args.preset + ("+small" if args.rehearse else ""),
        f"--data={dataset}", f"--runs={run.parent}", f"--name={run.name}",
        f"--train.max-seconds={60 * args.gpu_minutes:g}",
        *(LITTLE if args.rehearse else ()),
    ]  # fmt: skip
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if args.rehearse else {}
    again = math.ceil(60 * args.gpu_minutes / (ASKED * args.limit)) + 1
    return (
        Part("data", data, dataset / "dataset.json", read_json, rows_of_data),
        Part("training", command, run, read_run, rows_of_run, goes_on=again, environment=hidden),
    )


def first_gpu() -> str:
    """What CUDA_VISIBLE_DEVICES is for the first GPU of those that this process may use."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def read_json(path: Path) -> Figures:
    found: Figures = json.loads(path.read_text())
    return found


def read_junit(path: Path) -> Figures:
    """How many tests of pytest's XML file passed or did not."""
    suite = next(ElementTree.parse(path).iter("testsuite"))
    return {what: int(suite.attrib[what]) for what in ("tests", "failures", "errors", "skipped")}


def read_run(folder: Path) -> Figures:
    """The run's result.json, with its tokens a second of training."""
    result, batch = (
        read_json(folder / "result.json"),
        read_json(folder / "config.json")["train"]["batch_tokens"],
    )
    return result | {"tokens_per_second": batch * result["steps"] / result["train_seconds"]}


def rows_of_tests(figures: Figures) -> Rows:
    return [list(figures), [str(count) for count in figures.values()]]


def rows_of_data(figures: Figures) -> Rows:
    splits = figures["splits"].items()
    return [
        ["split", "documents", "tokens", "bytes"],
        *([name, *(f"{its[what]:,}" for what in ("documents", "tokens", "bytes"))] for name, its in splits),
    ]


def rows_of_run(figures: Figures) -> Rows:
    """Training, file and scores, a figure a row."""
    scores = figures["artifact"].items()
    return [
        ["figure", "value"],
        ["steps", f"{figures['steps']:,}"],
        ["seconds of training", f"{figures['train_seconds']:,.1f}"],
        ["tokens a second", f"{figures['tokens_per_second']:,.0f}"],
        *([f"seconds, {stage}", f"{seconds:,.1f}"] for stage, seconds in figures["seconds"].items()),
        ["bytes of code and model", f"{figures['bytes_total']:,}"],
        *([f"val_bpb, {how}, in {its['seconds']:.1f} s", f"{its['val_bpb']:.4f}"] for how, its in scores),
    ]


def finish(
    command: list[str], log: Path, seconds: float, environment: dict[str, str], lock: int | None
) -> tuple[int, bool]:
    """Run a command, what it prints into `log`; returns its exit code and whether it was stopped.

    After ASKED of the `seconds`, or if this process is stopped, it is asked to end; at last it is killed.
    """
    with open(log, "ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,  # the terminal's Ctrl-C reaches it through this process alone
            pass_fds=() if lock is None else (lock,),
        )  # fmt: skip
    try:
        process.wait(ASKED * seconds)
    except subprocess.TimeoutExpired:
        code = stop(process, (1 - ASKED) * seconds)
        return code, code != 0  # it may just have ended by itself
    except BaseException:
        stop(process, (1 - ASKED) * seconds)
        raise
    return process.returncode, False


def stop(process: subprocess.Popen[bytes], patience: float) -> int:
    """Ask a process to end, and kill it and its children after so many seconds; returns its exit code."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def run_part(part: Part, log: Path, limit: float, lock: int | None) -> Figures:
    """Run a part to its end; returns what gpu.json holds of it, with its figures or its error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    date, start = datetime.now().astimezone().isoformat(timespec="seconds"), time.perf_counter()
    for _ in range(part.goes_on + 1):
        code, stopped = finish(part.command, log, limit, part.environment, lock)
        if not stopped:
            break
    found = {
        "command": part.shown,
        "date": date,
        "seconds": round(time.perf_counter() - start, 1),
        "rc": code,
    }
    if stopped:
        return found | {"error": f"ran over its limit of {limit:g} s"}
    if code:
        killed = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
        return found | {"error": killed or last_words(log) or f"exit code {code}"}
    return found | {"figures": part.read(part.left)}


def last_words(log: Path) -> str:
    """The line of a log that says what went wrong: of ours, or of an exception, or the last one."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if re.search(r"\w", line)]
    said = [line for line in lines if re.match(r"(\[rank\d+\]: )?(pargolf: error|[\w.]+Error): \S", line)]
    return visible((said or lines or [""])[-1], " ").strip()


def machine_of(rehearse: bool) -> list[str]:
    """The processors that are measured, in words."""
    if rehearse:
        return [f"{os.cpu_count()} cores, {platform.machine()}"]
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in found]


def commit() -> str:
    """The commit of this checkout; "unknown" outside of one."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def begun(path: Path, args: Args) -> Figures:
    """What gpu.json holds so far; UserError if it is of another machine or other code."""
    here = {
        "rehearsed": args.rehearse,
        "machine": machine_of(args.rehearse),
        "versions": {
            "pargolf": pargolf.__version__, "python": platform.python_version(),
            "torch": torch.__version__, "cuda": torch.version.cuda,
        },
        "commit": commit(),
    }  # fmt: skip
    if not path.exists():
        return here | {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "parts": {}}
    try:
        found = read_json(path)
        other = next((name for name in here if found[name] != here[name]), None)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; remove it, or name another --out") from None
    if other:
        raise UserError(
            f"{path} holds another {other}'s figures: {found[other]}, here {here[other]}; name another --out"
        )
    return found


def is_done(part: Part, record: Figures) -> bool:
    found = record["parts"].get(part.name, {})
    return "figures" in found and found["command"] == part.shown


def goal(part: Part, found: Figures, record: Figures) -> str:
    """Whether the last form of a step is as fast as it should be, in words; "" of other parts."""
    if part.goal_ms is None or "figures" not in found:
        return ""
    ms = found["figures"]["forms"][-1]["ms"]["median"]
    told = f"goal on one {' or '.join(GOAL_CARDS)}: {part.goal_ms:g} ms; here {ms:.1f} ms, "
    if record["rehearsed"]:
        return told + "a rehearsal, which says nothing of it"
    if not any(card in record["machine"][0] for card in GOAL_CARDS):
        return told + "on another card"
    return told + ("met" if ms <= part.goal_ms else "not met")


def write_page(path: Path, record: Figures, parts: list[Part]) -> None:
    """gpu.html: every part with its table, its error, or that it has not run."""
    shown = [(part, record["parts"].get(part.name)) for part in parts]
    sections = [
        (part.name, its, part.rows(its["figures"]) if its and "figures" in its else None)
        for part, its in shown
    ]
    page = render("gpu.html.j2", record=record, sections=sections)
    write_atomic(path, page.encode(errors="backslashreplace"))


def check(args: Args) -> int:
    """The number of GPUs to train on; UserError if the arguments cannot be met here."""
    require(
        args.rehearse or torch.cuda.is_available(),
        "there is no GPU here; --rehearse runs every part on the CPU with tiny shapes",
    )
    require(0 < args.gpu_minutes < math.inf, f"--gpu-minutes must be above 0, is {args.gpu_minutes}")
    require(args.limit > 0, f"--limit must be above 0, is {args.limit}")
    load_preset(args.preset)
    for path in args.text:
        require(path.exists(), f"there is no {path} to train on")
    return 0 if args.rehearse else torch.cuda.device_count()


def chosen(parts: list[Part], names: tuple[str, ...]) -> list[Part]:
    """The parts of these names, or all; UserError if there is none of a name."""
    known = [part.name for part in parts]
    for name in names:
        require(name in known, f"no part '{name}'{did_you_mean(name, known)} (there are: {', '.join(known)})")
    return [part for part in parts if not names or part.name in names]


def measure(args: Args) -> int:
    """Run the parts that are missing or failed; returns 2 if any failed, else 0."""
    gpus = check(args)
    parts = parts_of(args, gpus)
    now = chosen(parts, args.only)
    with locked(args.out, "is in use by another such command, or by a part of one that was killed") as lock:
        path = args.out / "gpu.json"
        record = begun(path, args)
        todo = [part for part in now if not is_done(part, record)]
        if len(todo) < len(now):
            say(f"{path} has {len(now) - len(todo)} of {len(now)} parts; this goes on with the others")
        for part in todo:
            log = args.out / f"parts/{part.name}.log"
            say(f"{part.name}: {part.shown} > {log}")
            record["parts"][part.name] = its = run_part(part, log, args.limit, lock)
            if told := goal(part, its, record):
                its["goal"] = told
            write_json(path, record)
            write_page(path.with_suffix(".html"), record, parts)
            say(f"  failed: {its['error']}" if "error" in its else f"  {its['seconds']:.0f} s")
            if told:
                say(f"  {told}")
    failed = [part.name for part in now if not is_done(part, record)]
    say(f"{path.with_suffix('.html')} shows what was measured")
    if failed:
        say(f"failed: {', '.join(failed)}; the same command tries them again")
    return 2 if failed else 0


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number, "the parts that ended are kept")


def main(args: Args) -> int:
    """`measure`, and what is wrong in one line; 128 + n when stopped by signal n."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        return measure(args)
    except (UserError, Stopped, OSError) as error:  # OSError: a full disk, a folder without permission
        print(f"make gpu: {error}", file=sys.stderr)
        return 128 + error.signal_number if isinstance(error, Stopped) else 2


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
