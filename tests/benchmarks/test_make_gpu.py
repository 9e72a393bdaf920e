"""`make gpu` without a GPU: parts run, fail, are interrupted and gone on with; some are rehearsed."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path

import figures
import gpu
import pytest
import torch
import train

from pargolf.system.errors import UserError
from support import Dataset

FINE = 'print(\'{"title": "fine", "forms": []}\')'


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    """`gpu.main` sets those of its process for good."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, dict[str, dict[str, object]]]]:
    """Run Python programs as the parts of a rehearsal; the exit code, and the parts in gpu.json."""

    def run(
        programs: dict[str, str], limit: float = 60.0, goes_on: int = 0
    ) -> tuple[int, dict[str, dict[str, object]]]:
        parts = [
            gpu.Part(
                name, [sys.executable, "-c", program], tmp_path / f"out/parts/{name}.log",
                gpu.read_json, train.in_rows, goes_on=goes_on,
            )
            for name, program in programs.items()
        ]  # fmt: skip
        monkeypatch.setattr(gpu, "parts_of", lambda args, gpus: parts)
        code = gpu.main(gpu.Args(out=tmp_path / "out", limit=limit, rehearse=True))
        path = tmp_path / "out/gpu.json"
        return code, json.loads(path.read_text())["parts"] if path.exists() else {}

    return run


Run = Callable[..., tuple[int, dict[str, dict[str, object]]]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(gpu.Args(out=tmp_path / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no GPU" in line and "--rehearse" in line
    assert not (tmp_path / "out").exists()


def test_a_part_that_fails_is_one_line_and_the_others_go_on(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    code, parts = run({"bad": "print('first'); raise ValueError('no such luck')", "good": FINE})
    assert code == 2
    assert (parts["bad"]["rc"], parts["bad"]["error"]) == (1, "ValueError: no such luck")
    assert parts["good"]["figures"] == {"title": "fine", "forms": []}
    assert "failed: bad" in capsys.readouterr().out


def test_a_part_that_is_killed_says_so(run: Run) -> None:
    _, parts = run({"killed": "print('all is well', flush=True)\nimport os; os.kill(os.getpid(), 9)"})
    assert parts["killed"]["error"] == "killed by SIGKILL"


def test_the_same_command_goes_on_with_what_failed(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    programs = {"good": FINE, "late": f"import os\nassert os.path.exists({str(there)!r}), 'not yet'\n{FINE}"}
    _, before = run(programs)
    assert before["late"]["error"] == "AssertionError: not yet"
    there.touch()
    capsys.readouterr()
    code, parts = run(programs)
    assert code == 0
    assert parts["good"] == before["good"] and "error" not in parts["late"]
    assert "has 1 of 2 parts" in capsys.readouterr().out


def test_a_part_over_its_limit_is_stopped(run: Run) -> None:
    code, parts = run({"slow": "import time; time.sleep(60)", "good": FINE}, limit=2.0)
    assert code == 2
    assert parts["slow"]["error"] == "ran over its limit of 2 s"
    assert "figures" in parts["good"]


def test_training_goes_on_after_its_limit(run: Run, tmp_path: Path) -> None:
    """A program that saves when it is asked to end, and needs three starts."""
    saved = tmp_path / "saved"
    program = (
        "import pathlib, signal, sys, time\n"
        f"saved = pathlib.Path({str(saved)!r})\n"
        "def stop(*_):\n    saved.open('a').write('x'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "if saved.exists() and len(saved.read_text()) == 2:\n"
        f"    {FINE}\nelse:\n    time.sleep(60)\n"
    )
    code, parts = run({"training": program}, limit=3.0, goes_on=5)
    assert (code, parts["training"]["rc"], saved.read_text()) == (0, 0, "xx")


def test_an_interruption_keeps_what_has_ended(run: Run, tmp_path: Path) -> None:
    """The second part interrupts its parent, as `timeout` does, and says when it is asked to end itself."""
    asked = tmp_path / "asked"
    program = (
        "import os, pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path({str(asked)!r}).write_text('')))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)\n"
    )
    code, parts = run({"good": FINE, "interrupted": program})
    assert code == 128 + signal.SIGTERM
    assert list(parts) == ["good"] and asked.exists()


def test_figures_of_other_code_are_not_mixed(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run({"good": FINE})
    monkeypatch.setattr(gpu, "commit", lambda: "another")
    code, _ = run({"good": FINE})
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "another commit" in line and "--out" in line


def test_a_damaged_file_is_not_written_over(run: Run, tmp_path: Path) -> None:
    run({"good": FINE})
    (tmp_path / "out/gpu.json").write_text("{")
    assert gpu.main(gpu.Args(out=tmp_path / "out", rehearse=True)) == 2
    assert (tmp_path / "out/gpu.json").read_text() == "{"


@pytest.mark.parametrize(
    ("machine", "ms", "end"),
    [
        ("NVIDIA H100 80GB HBM3, 79 GiB", 37.9, "here 37.9 ms, met"),
        ("NVIDIA H200, 140 GiB", 38.1, "here 38.1 ms, not met"),
        ("NVIDIA A100, 40 GiB", 20.0, "on another card"),
    ],
)
def test_the_goal_stands_beside_the_figure(tmp_path: Path, machine: str, ms: float, end: str) -> None:
    step = next(p for p in gpu.parts_of(gpu.Args(), 1) if p.name == "step-lowrank-q192")
    form = {
        "form": "<pargolf>", "ms": figures.spread([ms] * 6), "tokens_per_second": 1.0, "times_plain": None,
        "times_full_q": None, "share_of_peak": 0.5, "peak_bytes": 15_500_000_000, "losses": [7.0, 6.0],
    }  # fmt: skip
    found = {"command": "python", "seconds": 1.0, "rc": 0, "figures": {"title": "here", "forms": [form]}}
    record = {
        "rehearsed": False, "machine": [machine], "versions": {"torch": "2"}, "commit": "c", "date": "d",
        "parts": {step.name: found},
    }  # fmt: skip
    told = gpu.goal(step, found, record)
    assert told.startswith("goal on one H100 or H200: 38 ms") and told.endswith(end)
    found["goal"] = told
    gpu.write_page(tmp_path / "gpu.html", record, gpu.parts_of(gpu.Args(), 1))
    page = (tmp_path / "gpu.html").read_text()
    assert told in page and "15.5" in page and "&lt;pargolf&gt;" in page
    assert page.count("Not yet run.") == 9


def test_several_gpus_train_and_the_first_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    parts = {part.name: part for part in gpu.parts_of(gpu.Args(gpu_minutes=30), 2)}
    assert "--nproc_per_node=2" in parts["training"].command and not parts["training"].environment
    assert parts["training"].goes_on >= 30 * 60 // 600
    assert parts["step-record-0427"].environment == {"CUDA_VISIBLE_DEVICES": "2"}


def test_a_form_that_ends_says_why() -> None:
    ours, its = Pipe()
    its.send("OutOfMemoryError: CUDA\nout of memory")
    with pytest.raises(UserError, match=r"^plain: OutOfMemoryError: CUDA out of memory$"):
        train.answer("plain", ours)
    its.close()
    with pytest.raises(UserError, match="its process was killed"):
        train.answer("plain", ours)


def rehearse(dataset: Dataset, folder: Path, only: tuple[str, ...]) -> dict[str, dict[str, object]]:
    text = folder / "articles.jsonl"
    text.write_text("".join(json.dumps({"text": text}) + "\n" for text in dataset.documents))
    assert gpu.main(gpu.Args((text,), only=only, out=folder / "out", rehearse=True)) == 0
    found: dict[str, dict[str, object]] = json.loads((folder / "out/gpu.json").read_text())["parts"]
    return found


def test_two_parts_in_rehearsal(dataset: Dataset, tmp_path: Path) -> None:
    parts = rehearse(dataset, tmp_path, ("kernels-lowrank-q192", "data"))
    assert set(parts) == {"kernels-lowrank-q192", "data"}
    page = (tmp_path / "out/gpu.html").read_text()
    assert "aten::mm" in page and "A rehearsal" in page


@pytest.mark.slow
def test_all_parts_in_rehearsal(dataset: Dataset, tmp_path: Path) -> None:
    parts = rehearse(dataset, tmp_path, ())
    assert list(parts) == [part.name for part in gpu.parts_of(gpu.Args(rehearse=True), 0)]
    assert all("figures" in part for part in parts.values())
