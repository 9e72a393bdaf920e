"""What `pargolf completion` prints, run by the shells themselves."""

import shutil
import subprocess
from pathlib import Path

import pytest

import pargolf
from pargolf.cli import COMMANDS, dispatch
from pargolf.cli.completion import ARGUMENTS, script

# The shell's side of a completion: words typed so far -> what is offered, one a line.
ASK = {
    "bash": 'source ./script; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tyro_pargolf;'
    ' printf "%s\\n" "${COMPREPLY[@]}"',
    "zsh": 'words=("$@"); CURRENT=$#; _describe() { print -l -- "${(@P)2}" };'
    ' _files() { ls -d "${words[-1]}"* };'
    " source ./script",
}


@pytest.fixture(params=["bash", "zsh"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if not shutil.which(request.param):
        pytest.skip(f"no {request.param} here")
    (tmp_path / "script").write_text(script(request.param))
    (tmp_path / "runs").mkdir()
    return str(request.param)


def offered(shell: str, folder: Path, *words: str) -> list[str]:
    done = subprocess.run(
        [shell, "-c", ASK[shell], shell, "pargolf", *words], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [line.partition(":")[0] for line in done.stdout.splitlines()]


def test_every_command_and_option_is_completed(shell: str, tmp_path: Path) -> None:
    assert ARGUMENTS.keys() == COMMANDS.keys()
    assert set(offered(shell, tmp_path, "")) == {*COMMANDS, "-h", "--help"}
    assert sorted(offered(shell, tmp_path, "comp")) == ["compare", "completion", "compress"]
    assert offered(shell, tmp_path, "train", "demo+legendre-mix", "--train.see") == ["--train.seed"]
    assert offered(shell, tmp_path, "data", "--te") == ["--text"]  # whose description has several lines
    assert offered(shell, tmp_path, "data", "fineweb", "--train") == ["--train-shards"]
    assert offered(shell, tmp_path, "train", "demo", "--train.dtype", "b") == ["bfloat16"]
    assert offered(shell, tmp_path, "pack", "ru") == ["runs"]
    assert offered(shell, tmp_path, "compress", "FILE", "--model", "ru") == ["runs"]


def test_bash_is_told_whom_to_ask(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(script("bash"))
    done = subprocess.run(
        ["bash", "-c", "source ./script; complete -p pargolf"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "complete -o filenames -F _tyro_pargolf pargolf"


def test_version_and_a_wrong_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["--version"]) == 0
    assert capsys.readouterr().out == f"pargolf {pargolf.__version__}\n"
    assert dispatch(["completion", "fish"]) == 2
    assert "'bash', 'zsh'" in capsys.readouterr().err
