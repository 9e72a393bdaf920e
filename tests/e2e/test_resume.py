"""Training that is killed, stopped or repeated ends in the same run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pargolf.cli import dispatch
from pargolf.run.folder import read_lines
from support import Dataset


def start(dataset: Dataset, runs: Path, name: str, **changes: object) -> subprocess.Popen[str]:
    options = dataset.options(train__iterations=60, train__val_every=30, **changes)
    return subprocess.Popen(
        [sys.executable, "-m", "pargolf", "train", "demo", "--runs", str(runs), "--name", name, *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def last_step(run: Path) -> int:
    return max((r["step"] for r in read_lines(run / "metrics.jsonl")), default=0)


def wait_for_step(run: Path, step: int) -> None:
    for _ in range(600):
        if last_step(run) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"{run} never reached step {step}")


@pytest.fixture(scope="module")
def unbroken(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("unbroken")
    assert start(dataset, runs, "a").wait() == 0
    return runs / "a"


def assert_same_run(a: Path, b: Path) -> None:
    assert read_lines(a / "metrics.jsonl") == read_lines(b / "metrics.jsonl")
    first, second = (load_file(folder / "checkpoint.safetensors") for folder in (a, b))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_one_seed_gives_one_run_bit_by_bit(dataset: Dataset, unbroken: Path, tmp_path: Path) -> None:
    assert start(dataset, tmp_path, "b").wait() == 0
    assert_same_run(unbroken, tmp_path / "b")
    assert (unbroken / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()
    for folder in (unbroken, tmp_path / "b"):
        assert dispatch(["pack", str(folder)]) == 0
    assert (unbroken / "model.pgz").read_bytes() == (tmp_path / "b" / "model.pgz").read_bytes()
    other = dataset.options(train__iterations=3, train__seed=2)
    assert dispatch(["train", "demo", "--runs", str(tmp_path), "--name", "c", *other]) == 0
    assert read_lines(tmp_path / "c/metrics.jsonl")[0] != read_lines(unbroken / "metrics.jsonl")[0]


def test_killed_at_random_moments_it_ends_the_same(dataset: Dataset, unbroken: Path, tmp_path: Path) -> None:
    run, moment = tmp_path / "killed", random.Random(int(os.environ.get("PYTEST_SEED", "5")))
    for _ in range(2):
        done = last_step(run)
        process = start(dataset, tmp_path, "killed")
        wait_for_step(run, min(done + moment.randrange(1, 12), 58))
        time.sleep(moment.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    final = start(dataset, tmp_path, "killed")
    out, _ = final.communicate()
    assert final.returncode == 0
    assert "continuing from step" in out
    assert_same_run(unbroken, run)


def test_a_stop_signal_saves_and_leaves_cleanly(
    dataset: Dataset, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "stopped"
    for number in (signal.SIGINT, signal.SIGTERM):
        done = last_step(run)
        process = start(dataset, tmp_path, "stopped", train__checkpoint_every=0)
        wait_for_step(run, done + 7)
        process.send_signal(number)
        _, error = process.communicate()
        assert process.returncode == 128 + number
        assert "the same command continues" in error
        assert "Traceback" not in error
        assert dispatch(["pack", str(run)]) == 2
        assert "training stopped at step" in capsys.readouterr().err
    assert start(dataset, tmp_path, "stopped", train__checkpoint_every=0).wait() == 0
    assert_same_run(unbroken, run)
    assert json.loads((run / "config.json").read_text())["train"]["seed"] == 1337
