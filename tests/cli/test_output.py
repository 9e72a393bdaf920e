"""A reader that leaves, or a full disk behind the output, is one line or silence."""

import subprocess
import sys

import pytest

from pargolf.cli import COMMANDS, dispatch


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """A line for bash with `pargolf` in it, whose exit code is the first failing command's."""
    line = line.replace("pargolf", f"'{sys.executable}' -m pargolf", 1)
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("command", ["--help", "config demo", "train demo --help"])
def test_a_full_disk_behind_the_output_is_one_line(command: str) -> None:
    done = shell(f"pargolf {command} >/dev/full")
    assert done.returncode == 2
    full = "No space left on device; free some space, then give the same command again"
    assert done.stderr == f"pargolf: error: {full}\n"


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "config demo",
        "train demo --help",
        "plan demo --export.code-form readable --train.compile off",
    ],
)
def test_a_reader_that_leaves_ends_it_in_silence(command: str) -> None:
    done = shell(f"pargolf {command} | true")
    assert done.returncode == 141
    assert done.stderr == ""


def test_nowhere_to_say_anything_leaves_the_exit_code() -> None:
    assert shell("pargolf nonsense 2>/dev/full").returncode == 2
    assert shell("pargolf --help >/dev/full 2>&1").returncode == 2
    assert shell("pargolf --help >&-").returncode == 0


def test_a_full_disk_under_the_compiler_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As torch.compile passes on what a C++ compiler says with a full TMPDIR."""

    def compiling(argv: list[str]) -> None:
        raise RuntimeError(
            "CppCompileError: C++ compile error\nfatal error: /tmp/x.s: No space left on device\nended"
        )

    monkeypatch.setitem(COMMANDS, "plan", compiling)
    assert dispatch(["plan", "demo"]) == 2
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1 and "/tmp/x.s: No space left on device; free some space, or set TMPDIR" in said
    )
