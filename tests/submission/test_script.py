"""The submitted file alone: in an empty folder, without pargolf, it makes and scores the same artifact."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pargolf.cli import dispatch
from pargolf.config.settings import read_config
from pargolf.submission.script import from_environment, score_artifact
from pargolf.submission.submit import About, submit
from pargolf.system.errors import UserError
from support import Dataset

# Importing pargolf fails in the processes that these tests start, wherever it is installed.
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pargolf":
            raise ImportError("pargolf is not installed here")
sys.meta_path.insert(0, Block())
"""
EXACT = re.compile(r"final_int6_sliding_window_exact val_loss:\S+ val_bpb:\S+")


def submitted(finished: Path, out: Path, *options: str) -> Path:
    """The submission folder of a run in one form."""
    about = ["--author", "A", "--github-id", "G", "--name", "Tiny", "--positions", "4"]
    assert dispatch(["submit", str(finished), *about, "--out", str(out), *options]) == 0
    return out


def alone(folder: Path, *arguments: str, ranks: int = 1, **environment: str) -> str:
    """Run train_gpt.py in `folder` as a judge would; returns what it prints."""
    block = folder.parent / "block"
    block.mkdir(exist_ok=True)
    (block / "sitecustomize.py").write_text(BLOCK)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    done = subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else []), "train_gpt.py", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(block), **environment},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pargolf_is_really_out_of_reach(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "train_gpt.py").write_text("try: import pargolf\nexcept ImportError as error: print(error)\n")
    assert alone(folder) == "pargolf is not installed here\n"


def test_the_readable_file_makes_the_same_artifact_and_log(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    out = submitted(finished, tmp_path / "out", "--form", "readable")
    shutil.copyfile(out / "train_gpt.py", folder / "train_gpt.py")
    printed = alone(folder, RUN_ID="mine")
    assert (folder / "model.pgz").read_bytes() == (finished / "model.pgz").read_bytes()
    assert (folder / "logs" / "mine.txt").read_text() == printed

    def without_times(text: str) -> list[str]:
        lines = [line for line in text.splitlines() if line.startswith(("step:", "final_"))]
        return [re.sub(r"(train_time|step_avg|eval_time|tok/s):\S+", "", line) for line in lines]

    log = without_times((finished / "train.log").read_text())
    assert len(log) > 25
    assert without_times(printed) == log


def test_the_compressed_file_does_the_same_beside_an_artifact(finished: Path, tmp_path: Path) -> None:
    folder = submitted(finished, tmp_path / "out", "--form", "compressed")
    artifact = (folder / "model.pgz").read_bytes()
    printed = alone(folder)
    assert EXACT.findall(printed) == EXACT.findall((finished / "train.log").read_text())
    assert (folder / "logs" / "model.pgz").read_bytes() == artifact
    assert (folder / "model.pgz").read_bytes() == artifact
    code_bytes = (folder / "train_gpt.py").stat().st_size
    assert f"Code size: {code_bytes} bytes\n" in printed
    assert f"Total submission size int6+zstd: {code_bytes + len(artifact)} bytes\n" in printed


def test_a_run_packed_anew_brings_the_code_of_its_codec(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert dispatch(["pack", str(run), "--codec", "brotli", "--layout", "range"]) == 0
    assert dispatch(["eval", str(run)]) == 0
    results = [json.loads((folder / "result.json").read_text()) for folder in (finished, run)]
    assert results[0]["artifact"]["sliding"]["val_loss"] == results[1]["artifact"]["sliding"]["val_loss"]
    assert results[0]["bytes_model"] > results[1]["bytes_model"]
    with pytest.raises(UserError, match=r"export\.layout is bytes there, range here"):
        submit([finished, other_seed(run, tmp_path / "other")], About("A", "G", "T"), tmp_path / "none")
    folder = submitted(run, tmp_path / "out", "--form", "compressed")
    assert {"brotli", "constriction"} <= {
        line.partition("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()
    }
    printed = alone(folder)
    assert (folder / "logs" / "model.pgz").read_bytes() == (run / "model.pgz").read_bytes()
    assert EXACT.findall(printed)[-1:] == EXACT.findall((run / "train.log").read_text())[-1:]
    assert "Total submission size int6+range+brotli: " in printed


def other_seed(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    config = json.loads((to / "config.json").read_text())
    config["train"]["seed"] = 42
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_the_file_fits_the_model_as_pack_did(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    code_bytes = json.loads((run / "result.json").read_text())["bytes_code"]
    assert dispatch(["pack", str(run), "--fit", str(code_bytes + 60_000)]) == 0
    with pytest.raises(AssertionError):
        submitted(run, tmp_path / "out")
    assert "pargolf eval" in capsys.readouterr().err
    assert dispatch(["eval", str(run)]) == 0
    folder = submitted(run, tmp_path / "out", "--form", "minified")
    artifact = (folder / "model.pgz").read_bytes()
    printed = alone(folder)
    assert (folder / "logs" / "model.pgz").read_bytes() == artifact == (run / "model.pgz").read_bytes()
    exact = re.compile(r"final_fitted_sliding_window_exact val_loss:\S+ val_bpb:\S+")
    assert exact.findall(printed) == exact.findall((run / "train.log").read_text()) != []
    assert dispatch(["analyze", str(run)]) == 0


def test_the_minified_file_scores_an_artifact_without_training_data(
    finished: Path, dataset: Dataset, tmp_path: Path
) -> None:
    folder = submitted(finished, tmp_path / "out", "--form", "minified")
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard in dataset.folder.glob("fineweb_val_*.bin"):
        shutil.copy(shard, shards)
    tokenizer = shutil.copy(dataset.tokenizer, tmp_path / "t.model")
    printed = alone(folder, "--eval", "model.pgz", DATA_PATH=str(shards), TOKENIZER_PATH=str(tokenizer))
    assert "step:" not in printed
    result = json.loads((finished / "result.json").read_text())["artifact"]["sliding"]
    assert f"val_loss:{result['val_loss']:.8f} val_bpb:{result['val_bpb']:.8f}" in printed


@pytest.mark.slow
def test_two_ranks_run_it_and_the_environment_changes_it(finished: Path, tmp_path: Path) -> None:
    folder = submitted(finished, tmp_path / "out", "--form", "compressed")
    printed = alone(folder, ranks=2, ITERATIONS="3", SEED="9", VAL_LOSS_EVERY="0")
    assert "on 2 x cpu" in printed and "seed 9" in printed
    assert re.findall(r"^step:(\d+)/3 train_loss", printed, re.M) == ["1", "2", "3"]
    assert len(EXACT.findall(printed)) == 1  # one writer


def test_an_artifact_of_other_settings_is_refused(finished: Path) -> None:
    """What the file takes for constant must be so in the artifact that it reads."""
    config = from_environment(read_config(finished / "config.json"), {"NUM_LAYERS": "4"})
    with pytest.raises(UserError, match="made with other settings"):
        score_artifact(config, finished / "model.pgz", torch.device("cpu"), print)
