"""A reader that leaves, or a full disk behind the output, is one line or silence."""

import subprocess
import sys

import pytest


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
    assert done.stderr == "pargolf: error: No space left on device\n"


@pytest.mark.parametrize("command", ["--help", "config demo", "train demo --help", "plan demo"])
def test_a_reader_that_leaves_ends_it_in_silence(command: str) -> None:
    done = shell(f"pargolf {command} | true")
    assert done.returncode == 141
    assert done.stderr == ""


def test_nowhere_to_say_anything_leaves_the_exit_code() -> None:
    assert shell("pargolf nonsense 2>/dev/full").returncode == 2
    assert shell("pargolf --help >/dev/full 2>&1").returncode == 2
    assert shell("pargolf --help >&-").returncode == 0
