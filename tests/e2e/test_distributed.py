"""One rank and two gloo ranks on the same data: the same loss curve and the same score."""

import json
import shutil
from pathlib import Path

import pytest

from pargolf.cli import dispatch
from pargolf.run.folder import read_lines
from support import Dataset, pargolf


@pytest.mark.parametrize(("order", "pieces", "rounding"), [("stream", 2, "nearest"), ("shuffle", 1, "gptq")])
def test_two_ranks_train_and_score_as_one(
    order: str,
    pieces: int,
    rounding: str,
    dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = []
    for ranks in (1, 2):
        run = [
            "run",
            "demo",
            "--runs",
            tmp_path,
            "--name",
            f"ranks{ranks}",
            *dataset.options(
                eval__stride=16,
                train__iterations=12,
                train__micro_batches=pieces,
                data__order=order,
                export__rounding=rounding,
                export__attn_bits=4,
                export__mlp_bits=4,
                export__calibration_tokens=4096,
            ),
        ]
        if ranks == 1:
            assert dispatch([str(word) for word in run]) == 0
            out = capsys.readouterr().out
        else:
            done = pargolf(*run, ranks=ranks)
            assert done.returncode == 0, done.stderr
            out = done.stdout
        folder = tmp_path / f"ranks{ranks}"
        losses = [r["train_loss"] for r in read_lines(folder / "metrics.jsonl") if "train_loss" in r]
        results.append((losses, json.loads((folder / "result.json").read_text())["artifact"]))
        assert out.count("sliding_window_exact val_loss:") == 1  # one writer
        assert out.count("training text last read at ") == (rounding == "gptq")
    (one, score_one), (two, score_two) = results
    assert len(one) == 12
    assert two == pytest.approx(one, abs=1e-4)
    for how in ("standard", "sliding"):
        assert score_two[how]["tokens"] == score_one[how]["tokens"]
        assert score_two[how]["bytes"] == score_one[how]["bytes"]
        assert score_two[how]["val_bpb"] == pytest.approx(score_one[how]["val_bpb"], abs=2e-3)


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
    for ranks in (1, 2):
        copy = shutil.copytree(finished, tmp_path / f"ranks{ranks}")
        (copy / "result.json").unlink()
        if ranks == 1:
            assert dispatch(["eval", str(copy), *options]) == 0
        else:
            done = pargolf("eval", copy, *options, ranks=ranks)
            assert done.returncode == 0, done.stderr
        found.append(json.loads((copy / "result.json").read_text())["artifact"])
    one, two = found
    assert one["adapted"]["val_bpb"] < one["sliding"]["val_bpb"]
    for how in ("standard", "sliding", "adapted"):
        assert two[how]["val_loss"] == pytest.approx(one[how]["val_loss"], abs=1e-6)
        assert two[how]["val_bpb"] == pytest.approx(one[how]["val_bpb"], abs=1e-6)


def test_a_world_that_does_not_divide_is_said_once(dataset: Dataset, tmp_path: Path) -> None:
    options = dataset.options(train__micro_batches=1)
    done = pargolf("train", "demo", "--runs", tmp_path, *options, ranks=2)
    assert done.returncode != 0
    assert done.stderr.count("pargolf: error: ") == 1
    assert "pargolf: error: world size 2 does not divide" in done.stderr
