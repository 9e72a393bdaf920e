"""Running a stranger's script: its limits, its environment, and what is left of it."""

import time
from pathlib import Path

import pytest

from pargolf.check.evidence import Finding, gather
from pargolf.check.folder import open_folder
from pargolf.check.run_script import Limits, run_submission
from pargolf.cli import dispatch


def run(folder: Path, code: str, seconds: int = 20, memory_gb: float = 0.0) -> Finding:
    folder.mkdir(exist_ok=True)
    (folder / "train_gpt.py").write_text(code)
    return run_submission(gather(open_folder(folder)), Limits(seconds, memory_gb))


def test_it_runs_in_a_copy_and_its_last_line_is_reported(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "data.txt").write_text("7")
    found = run(
        tmp_path / "s", "print(open('data.txt').read())\nopen('new', 'w')\nprint('val_bpb:1.2\\n\\n')"
    )
    assert (found.level, found.message) == ("ok", "exit code 0; last line: val_bpb:1.2")
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["data.txt", "train_gpt.py"]


def test_a_script_that_fails_is_a_fault(tmp_path: Path) -> None:
    found = run(tmp_path / "s", "raise RuntimeError('CUDA is required')")
    assert (found.level, found.message) == ("fault", "exit code 1; last line: RuntimeError: CUDA is required")


def test_secrets_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("DATA_PATH", "/shards")
    found = run(tmp_path / "s", "import os\nprint(os.environ.get('HF_TOKEN'), os.environ['DATA_PATH'])")
    assert found.message.endswith("last line: None /shards")
    found = run(tmp_path / "s", "import os\nprint(os.environ['HOME'] == os.getcwd(), os.environ['HOME'])")
    assert "last line: True" in found.message
    assert str(Path.home()) + "\n" not in found.message + "\n"


def test_nothing_outlives_the_time_limit(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True:\n  pathlib.Path({str(alive)!r}).touch()\n  time.sleep(0.05)"
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print('started', flush=True)\ntime.sleep(60)"
    )
    start = time.perf_counter()
    found = run(tmp_path / "s", code, seconds=2)
    assert time.perf_counter() - start < 15
    assert (found.level, found.message) == (
        "not checked",
        "still running after 2 s, then stopped; last line: started",
    )
    time.sleep(0.3)
    alive.unlink()
    time.sleep(0.3)
    assert not alive.exists()


def test_memory_and_output_are_limited(tmp_path: Path) -> None:
    found = run(tmp_path / "s", "x = bytearray(2_000_000_000)", memory_gb=1.0)
    assert (found.level, found.message) == ("fault", "exit code 1; last line: MemoryError")
    found = run(tmp_path / "s", "print('x' * 3_000_000)\nprint('end')")
    assert found.message.endswith("last line: end")


def test_a_folder_with_links_out_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "home").symlink_to(tmp_path)
    found = run(tmp_path / "s", "print('hello')")
    assert (found.level, found.message[:7]) == ("not checked", "not run")


def test_run_is_asked_for_on_the_command_line(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (good / "train_gpt.py").write_text("raise SystemExit(3)")
    assert dispatch(["check", str(good), "--run"]) == 2
    assert "exit code 3" in capsys.readouterr().out
    assert dispatch(["check", str(good)]) == 2
    assert "exit code" not in capsys.readouterr().out
    assert dispatch(["check", str(good), "--run", "--run-seconds", "0"]) == 2
    assert "--run-seconds must be at least 1" in capsys.readouterr().err
