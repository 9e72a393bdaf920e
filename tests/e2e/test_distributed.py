"""One rank and two gloo ranks on the same data: the same loss curve and the same score."""

import json
from pathlib import Path

import pytest

from pargolf.run.folder import read_lines
from support import Dataset, pargolf


@pytest.mark.parametrize(("order", "pieces", "rounding"), [("stream", 2, "nearest"), ("shuffle", 1, "gptq")])
def test_two_ranks_train_and_score_as_one(
    order: str, pieces: int, rounding: str, dataset: Dataset, tmp_path: Path
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
                train__micro_batches=pieces,
                data__order=order,
                export__rounding=rounding,
                export__attn_bits=4,
                export__mlp_bits=4,
                export__calibration_tokens=4096,
                export__code_form="readable",
            ),
        ]
        done = pargolf(*run, ranks=ranks)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / f"ranks{ranks}"
        losses = [r["train_loss"] for r in read_lines(folder / "metrics.jsonl") if "train_loss" in r]
        results.append((losses, json.loads((folder / "result.json").read_text())["artifact"]))
        assert done.stdout.count("sliding_window_exact val_loss:") == 1  # one writer
        assert done.stdout.count("training text last read at ") == (rounding == "gptq")
    (one, score_one), (two, score_two) = results
    assert len(one) == 20
    assert two == pytest.approx(one, abs=1e-4)
    for how in ("standard", "sliding"):
        assert score_two[how]["tokens"] == score_one[how]["tokens"]
        assert score_two[how]["bytes"] == score_one[how]["bytes"]
        assert score_two[how]["val_bpb"] == pytest.approx(score_one[how]["val_bpb"], abs=2e-3)
    # The very same artifact, scored by one rank and by two.
    again = pargolf("eval", tmp_path / "ranks1", ranks=2)
    assert again.returncode == 0, again.stderr
    shared = json.loads((tmp_path / "ranks1" / "result.json").read_text())["artifact"]
    for how in ("standard", "sliding"):
        assert shared[how]["val_loss"] == pytest.approx(score_one[how]["val_loss"], abs=1e-6)
        assert shared[how]["val_bpb"] == pytest.approx(score_one[how]["val_bpb"], abs=1e-6)


def test_a_world_that_does_not_divide_is_one_line(dataset: Dataset, tmp_path: Path) -> None:
    done = pargolf("train", "demo", "--runs", tmp_path, *dataset.options(), ranks=3)
    assert done.returncode != 0
    assert done.stderr.count("pargolf: error: world size 3 does not divide") == 1


def test_any_mistake_under_torchrun_is_said_once(tmp_path: Path) -> None:
    done = pargolf("eval", tmp_path / "none", ranks=2)
    assert done.returncode != 0
    assert done.stderr.count("pargolf: error: ") == 1
