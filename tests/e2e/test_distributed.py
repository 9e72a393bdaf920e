"""Eight gloo ranks: the result of one, a rank that comes late or is killed, a full disk on the first."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

import ranks
from pargolf.cli import dispatch
from pargolf.run.folder import read_lines
from support import Dataset

RANKS = 8
FULL = ["bash", "-c", 'ulimit -f 100; exec "$@"', "-"]  # no file may become longer than 100 KiB


def start(
    *arguments: object, count: int = RANKS, under: Sequence[str] = (), late: float = 0
) -> subprocess.Popen[str]:
    """The command line on so many ranks, the last of which comes so many seconds late."""
    command = [*under, sys.executable, ranks.__file__, count, *arguments]
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "LATE": str(late)},
    )  # fmt: skip


def succeeds(*arguments: object, count: int = RANKS, late: float = 0) -> str:
    """Its output, after a run without an error."""
    process = start(*arguments, count=count, late=late)
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    return out


def only_line(process: subprocess.Popen[str]) -> str:
    """The one line that all ranks together end with, each by itself."""
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    assert error.count("\n") == 1, error
    return error


def kill_rank(process: subprocess.Popen[str], number: int) -> None:
    """SIGKILL; ranks are started in the order of their numbers."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(sorted(map(int, found.stdout.split()))[number], signal.SIGKILL)


def wait_for_step(run: Path, step: int) -> None:
    for _ in range(3000):
        if any(r["step"] >= step for r in read_lines(run / "metrics.jsonl")):
            return
        time.sleep(0.05)
    raise AssertionError(f"{run} never reached step {step}")


def losses(run: Path) -> list[float]:
    return [r["train_loss"] for r in read_lines(run / "metrics.jsonl") if "train_loss" in r]


def scores(run: Path, of: str) -> dict[str, dict[str, float]]:
    found = json.loads((run / "result.json").read_text())[of]
    assert isinstance(found, dict)
    return found


def assert_same_scores(one: dict[str, dict[str, float]], eight: dict[str, dict[str, float]]) -> None:
    assert one.keys() == eight.keys()
    for how, score in one.items():
        assert (eight[how]["tokens"], eight[how]["bytes"]) == (score["tokens"], score["bytes"])
        assert eight[how]["val_loss"] == pytest.approx(score["val_loss"], abs=1e-6)
        assert eight[how]["val_bpb"] == pytest.approx(score["val_bpb"], abs=1e-6)


@dataclass
class Trained:
    """One run by one rank and by eight, and what the eight printed."""

    one: Path
    eight: Path
    options: list[str]
    out: str

    def words(self, command: str, runs: Path) -> list[object]:
        return [command, "demo", "--runs", runs, "--name", "x", *self.options]


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Rows of a shuffled order, two pieces a rank; rounding reads training text on all ranks."""
    options = dataset.options(
        eval__stride=32,
        train__iterations=12,
        train__batch_tokens=1024,
        train__micro_batches=2 * RANKS,
        data__order="shuffle",
        export__rounding="gptq",
        export__calibration_tokens=4096,
    )
    runs = tmp_path_factory.mktemp("runs")
    found = Trained(runs / "one/x", runs / "eight/x", options, "")
    assert dispatch([str(word) for word in found.words("run", runs / "one")]) == 0
    found.out = succeeds(*found.words("run", runs / "eight"), late=3)
    return found


def test_eight_ranks_train_and_score_as_one(trained: Trained) -> None:
    assert len(losses(trained.one)) == 12
    assert losses(trained.eight) == pytest.approx(losses(trained.one), abs=1e-4)
    assert_same_scores(scores(trained.one, "checkpoint"), scores(trained.eight, "checkpoint"))
    assert trained.out.count("sliding_window_exact val_loss:") == 1  # one writer
    assert trained.out.count("training text last read at ") == 1


def test_eight_ranks_pack_the_same_weights_as_one(trained: Trained, tmp_path: Path) -> None:
    """Byte for byte. Trained by eight the weights differ in the last bits: gradients add in another order."""
    copy = shutil.copytree(trained.one, tmp_path / "x")
    for name in ("model.pgz", "result.json"):
        (copy / name).unlink()
    assert "training is already finished" in succeeds(*trained.words("run", tmp_path))
    assert (copy / "model.pgz").read_bytes() == (trained.one / "model.pgz").read_bytes()
    assert_same_scores(scores(trained.one, "artifact"), scores(copy, "artifact"))


@pytest.mark.slow
def test_killed_and_then_without_space_the_run_ends_the_same(trained: Trained, tmp_path: Path) -> None:
    words, run = trained.words("train", tmp_path), tmp_path / "x"
    killed = start(*words)
    wait_for_step(run, 6)
    kill_rank(killed, 0)
    assert "a rank was killed, or its machine is gone" in only_line(killed)
    saved = (run / "checkpoint.safetensors").read_bytes()

    assert "checkpoint.safetensors" in only_line(start(*words, under=FULL))
    assert (run / "checkpoint.safetensors").read_bytes() == saved
    assert not list(run.glob(".*.tmp"))

    assert "continuing from step 5" in succeeds(*words)
    assert losses(run) == losses(trained.eight)
    first, second = (load_file(folder / "checkpoint.safetensors") for folder in (run, trained.eight))
    assert all(first[name].equal(second[name]) for name in first)


SGD = {"adapt": "sgd", "sgd-chunk": "256", "tilt": "1"}
PHASES = {
    "adapt": "lora", "lora-chunk": "32", "lora-documents": "1", "lora-rank": "4", "phases": "1",
    "phase-documents": "1", "sgd-chunk": "256",
}  # fmt: skip


@pytest.mark.parametrize("form", [SGD, PHASES], ids=["sgd", "lora and a phase"])
def test_two_ranks_score_an_artifact_as_one(form: dict[str, str], finished: Path, tmp_path: Path) -> None:
    """The very same, so that training and packing move nothing; also while it learns."""
    options = [word for name, value in form.items() for word in (f"--eval.{name}", value)]
    found = []
    for name in ("one", "two"):
        copy = shutil.copytree(finished, tmp_path / name)
        (copy / "result.json").unlink()
        words = ["eval", str(copy), *options]
        if name == "one":
            assert dispatch(words) == 0
        else:
            succeeds(*words, count=2)
        found.append(scores(copy, "artifact"))
    assert found[0]["adapted"]["val_bpb"] < found[0]["sliding"]["val_bpb"]
    assert_same_scores(*found)


def test_a_world_that_does_not_divide_is_said_once(dataset: Dataset, tmp_path: Path) -> None:
    options = dataset.options(train__micro_batches=1)
    said = only_line(start("train", "demo", "--runs", tmp_path, *options))
    assert said.startswith("pargolf: error: world size 8 does not divide")


def torchrun(*arguments: object, launcher: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *launcher.split(), "-m", "pargolf", *arguments]
    return subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def said(error: str) -> list[str]:
    """What pargolf says beside torchrun's report."""
    assert error.count("Traceback (most recent call last)") == 1, error  # torchrun's own
    return [line for line in error.splitlines() if line.startswith("pargolf: ")]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 5])
def test_under_torchrun_a_killed_rank_is_one_line(trained: Trained, victim: int, tmp_path: Path) -> None:
    words, run = trained.words("train", tmp_path), tmp_path / "x"
    process = torchrun(*words, launcher=f"--standalone --nproc_per_node={RANKS}")
    wait_for_step(run, 6)
    kill_rank(process, victim)
    _, error = process.communicate(timeout=300)
    assert process.returncode != 0
    (line,) = said(error)
    assert "a rank was killed" in line or "a rank has failed" in line
    assert "continuing from step 5" in succeeds(*words)
    assert losses(run) == losses(trained.eight)


@pytest.mark.slow
def test_two_nodes_give_the_result_of_one(dataset: Dataset, tmp_path: Path) -> None:
    options = dataset.options(train__iterations=12, train__micro_batches=4)

    def words(name: str) -> list[object]:
        return ["run", "demo", "--runs", tmp_path, "--name", name, *options]

    one = torchrun(*words("one"), launcher="--standalone --nproc_per_node=2")
    assert one.wait(timeout=300) == 0, one.communicate()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nodes = [
        torchrun(
            *words("two"),
            launcher=f"--nnodes 2 --nproc_per_node 1 --node_rank {node} --master_addr 127.0.0.1"
            f" --master_port {port}",
        )
        for node in (0, 1)
    ]
    outs = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outs
    assert "val_bpb" in outs[0][0] and outs[1][0] == ""  # the first node writes, and prints
    for name in ("metrics.jsonl", "model.pgz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert_same_scores(scores(tmp_path / "one", "artifact"), scores(tmp_path / "two", "artifact"))
