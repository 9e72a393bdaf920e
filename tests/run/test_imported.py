"""A published log as a run's folder: what it holds, what it refuses, and our own log against our own run."""

import json
import os
from pathlib import Path

import pytest

from pargolf.cli import dispatch
from pargolf.config.schema import RunConfig
from pargolf.config.settings import to_dict
from pargolf.run.folder import Run, read_lines
from pargolf.run.imported import SETTINGS, import_run
from pargolf.study.compare import group_records
from pargolf.study.records import read_record
from pargolf.system.errors import UserError
from submission_support import log_text
from support import Dataset


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "lowrank" / "train_seed42.log"
    path.parent.mkdir()
    path.write_text(log_text(42, 50_000))
    return path


def test_a_published_log_becomes_a_run(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["import-log", str(log), "--runs", str(tmp_path / "runs")]) == 0
    run = Run(tmp_path / "runs" / "lowrank-train_seed42")
    assert capsys.readouterr().out == f"{run.folder}: 3 lines of 7732 steps, val_bpb 1.15557992\n"
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "imported.json", "metrics.jsonl", "result.json", "timing.jsonl", "train.log"
    ]  # fmt: skip
    assert run.log.read_bytes() == log.read_bytes()
    assert read_lines(run.metrics) == [
        {"step": 0, "val_loss": 6.937, "val_bpb": 4.0978},
        {"step": 1, "train_loss": 6.9408},
        {"step": 7732, "val_loss": 1.96, "val_bpb": 1.1608},
    ]
    assert read_lines(run.timing) == [{"step": 1, "seconds": 0.077}]
    assert json.loads(run.result.read_text()) == {
        "artifact": {
            "standard": {"val_loss": 1.98123456, "val_bpb": 1.1734, "seconds": 7.75},
            "sliding": {"val_loss": 1.95112345, "val_bpb": 1.15557992, "seconds": 83.873},
        },
        "checkpoint": {"standard": {"val_loss": 1.96, "val_bpb": 1.1608}},
        "steps": 7732,
        "train_seconds": 600.021,
        "stride": 64,
        "seq_len": 1024,
        "bytes_model": 1_234_567,
        "bytes_code": 50_000,
        "bytes_total": 1_284_567,
    }
    record = json.loads((run.folder / "imported.json").read_text())
    assert record["source"] == "train_seed42.log"
    assert record["seed"] == 42
    assert record["settings"] == {
        "model": {"seq_len": 1024},
        "train": {
            "batch_tokens": 524288, "iterations": 20000, "compile_warmup_steps": 20, "max_seconds": 600.0,
            "seed": 42,
        },
        "optim": {"embed_lr": 0.03, "muon_lr": 0.02, "vector_lr": 0.02},
    }  # fmt: skip
    assert record["others"] == {"model_params": 25780824, "tie_embeddings": True, "head_lr": 0.0}


def test_a_test_time_trained_score_keeps_its_name_and_goes_last(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(
        "Hyperparameters:\n  tied_embed_lr: 0.03\n  embed_lr: 0.6\n"
        "  eval_seq_len: 2048\n  train_seq_len: 1024\n"
        "10/10 train_loss: 2.5 train_time: 0.5m tok/s: 1\n"
        "quantized_ttt val_loss:2.1 val_bpb:1.05\nquantized val_loss:2.2 val_bpb:1.06 eval_time:2000ms\n"
        "quantized_ttt val_loss:2.0 val_bpb:1.04 stride:8 tokens:71526 bytes:202030\n"
    )
    import_run(path, tmp_path / "runs", "late")
    result = json.loads((tmp_path / "runs/late/result.json").read_text())
    assert list(result["artifact"]) == ["standard", "quantized_ttt"]
    assert result["artifact"]["quantized_ttt"] == {
        "val_loss": 2.0, "val_bpb": 1.04, "tokens": 71526, "bytes": 202030
    }  # fmt: skip
    assert "checkpoint" not in result
    assert (result["seq_len"], result["steps"]) == (2048, 10)
    settings = json.loads((tmp_path / "runs/late/imported.json").read_text())["settings"]
    assert settings["optim"] == {"embed_lr": 0.03}


def test_a_log_of_rounded_minutes_gives_exact_times_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(
        "Hyperparameters:\n  seed: 7\n"
        "500/20000 train_loss: 3.3 train_time: 1.0m tok/s: 1\n"
        "1000/20000 train_loss: 3.2 train_time: 2.0m tok/s: 1\n"
        "1502/20000 val_loss: 2.78 val_bpb: 1.0762\n"
        "stopping_early: wallclock_cap train_time: 183244ms step: 1502/20000\n"
        "pre-quantization post-ema val_loss:2.77 val_bpb:1.072\n"
        "diagnostic quantized val_loss:2.8 val_bpb:1.0839\nquantized_ttt val_loss:2.79 val_bpb:1.08\n"
    )
    import_run(path, tmp_path / "runs", "late")
    run = Run(tmp_path / "runs/late")
    assert read_lines(run.timing) == [{"step": 1502, "seconds": 183.244}]
    assert read_record(run.folder).step_ms == pytest.approx(122.0)
    result = json.loads(run.result.read_text())
    assert (result["steps"], result["train_seconds"]) == (1502, 183.244)
    assert result["checkpoint"]["pre-quantization post-ema"] == {"val_loss": 2.77, "val_bpb": 1.072}
    assert list(result["artifact"]) == ["standard", "quantized_ttt"]


def test_of_two_names_for_a_setting_the_nearer_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(
        "Hyperparameters:\n  muon_wd: 0.04\n  weight_decay: 0.01\n  warmdown_frac: 0.5\n  tokenizer_path: x\n"
        "  eval_batch_seqs: 7\n10/10 train_loss: 2.5 train_time: 0.5m tok/s: 1\n"
    )
    import_run(path, tmp_path / "runs", "two")
    record = json.loads((tmp_path / "runs/two/imported.json").read_text())
    assert record["settings"] == {
        "train": {"warmdown_fraction": 0.5}, "optim": {"muon_weight_decay": 0.04}, "eval": {"batch_rows": 7}
    }  # fmt: skip
    assert "tokenizer_path" in record["others"]  # a place on another machine


def test_settings_have_the_names_of_config_json() -> None:
    config = to_dict(RunConfig())
    for name in SETTINGS.values():
        section, _, setting = name.partition(".")
        assert setting in config[section], name


def test_nothing_is_overwritten(log: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match="mine exists; choose another --name"):
        import_run(log, tmp_path / "runs", "mine")
    assert list((tmp_path / "runs").iterdir()) == [tmp_path / "runs" / "mine"]
    assert not list((tmp_path / "runs" / "mine").iterdir())


def test_a_failed_import_leaves_nothing(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pargolf.run.imported.append_line", full)
    with pytest.raises(OSError, match="No space left"):
        import_run(log, tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


def test_what_is_no_log_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "picture.log").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "empty.log").write_text("")
    (tmp_path / "big.log").touch()
    os.truncate(tmp_path / "big.log", 10**9)
    for name, words in (
        ("picture.log", "is no training log"),
        ("empty.log", "is no training log"),
        ("big.log", "more than"),
        ("none.log", "is no file"),
        (".", "is no file"),
    ):
        assert dispatch(["import-log", str(tmp_path / name), "--runs", str(tmp_path / "runs")]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_our_own_log_gives_our_own_metrics(dataset: Dataset, tmp_path: Path) -> None:
    runs = ["--runs", str(tmp_path / "runs")]
    assert dispatch(["train", "demo", *runs, "--name", "a", *dataset.options(train__val_every=10)]) == 0
    mine = Run(tmp_path / "runs" / "a")
    assert dispatch(["import-log", str(mine.log), *runs, "--name", "b"]) == 0
    theirs = Run(tmp_path / "runs" / "b")
    before, after = read_lines(mine.metrics), read_lines(theirs.metrics)
    assert len(before) == len(after) == 22
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        assert list(other.values()) == pytest.approx(list(one.values()), abs=5e-4)
    assert [r["step"] for r in read_lines(theirs.timing)] == [r["step"] for r in read_lines(mine.timing)]
    assert json.loads((theirs.folder / "imported.json").read_text())["seed"] == 1337


def test_imported_runs_are_compared_and_reported_beside_others(
    log: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_run(log, tmp_path, "lowrank-seed42")
    (tmp_path / "other.log").write_text(log_text(7, 50_000))
    import_run(tmp_path / "other.log", tmp_path, "lowrank-seed7")
    folders = [tmp_path / "lowrank-seed42", tmp_path / "lowrank-seed7"]
    records = [read_record(folder) for folder in folders]
    assert [record.seed for record in records] == [42, 7]
    (group,) = group_records(records)
    assert group.val_bpb == pytest.approx(1.15557992, abs=1e-3)
    assert dispatch(["compare", *map(str, folders), "--against", "1.1748"]) == 0
    assert "no test" not in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert dispatch(["report", str(folders[0]), str(finished), "--out", str(page)]) == 0
    assert "1.155" in page.read_text()
