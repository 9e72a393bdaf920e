"""Reading a finished run's figures: our own, an imported one, a damaged one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pargolf.config.schema import RunConfig
from pargolf.config.settings import to_dict
from pargolf.study.compare import group_records
from pargolf.study.records import read_record, read_records, runs_in
from pargolf.system.errors import UserError

SCORE = {"val_loss": 2.0, "val_bpb": 1.2, "tokens": 10, "bytes": 24}
RESULT = {
    "artifact": {"standard": {**SCORE, "val_bpb": 1.3}, "sliding": SCORE},
    "stride": 64, "seq_len": 1024, "bytes_model": 90, "bytes_total": 100, "budget": 1000,
    "steps": 7, "train_seconds": 3.5,
}  # fmt: skip


def folder(root: Path, name: str = "run", **files: Any) -> Path:
    """A run folder of the given files; lists become .jsonl."""
    (root / name).mkdir()
    for file, content in files.items():
        if isinstance(content, list):
            (root / name / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            (root / name / f"{file}.json").write_text(json.dumps(content))
    return root / name


def test_a_run_of_ours(tmp_path: Path) -> None:
    timing = [{"step": 1, "seconds": 5.0}, {"step": 11, "seconds": 6.0}, {"step": 21, "seconds": 8.0}]
    config = to_dict(RunConfig(preset="demo+legendre-mix"))
    path = folder(tmp_path, config=config, result=RESULT, timing=timing)
    record = read_record(path)
    assert (record.name, record.val_bpb, record.val_loss, record.stride) == ("run", 1.2, 2.0, 64)
    assert (record.seed, record.settings["model.q_rank"]) == (1337, 192)
    assert record.preset == "demo+legendre-mix" and "preset" not in record.settings
    assert (record.bytes_total, record.bytes_model, record.budget) == (100, 90, 1000)
    assert (record.steps, record.train_seconds) == (7, 3.5)
    assert record.step_ms == pytest.approx(200)  # of 1 step at 5000, 10 at 100 and 10 at 200


def test_what_was_done_counts_and_not_what_was_set(tmp_path: Path) -> None:
    """`eval --eval.adapt lora` and `pack --fit` leave config.json as it is."""
    config = to_dict(RunConfig())
    config["export"]["codec"] = "auto"
    done = {
        "artifact": {"sliding": SCORE, "adapted": {**SCORE, "val_bpb": 1.1}},
        "eval": {"adapt": "lora", "younger": 1}, "export": {"codec": "lzma", "level": 9, "attn_bits": 3},
    }  # fmt: skip
    record = read_record(folder(tmp_path, config=config, result=RESULT | done))
    assert (record.val_bpb, record.settings["eval.adapt"]) == (1.1, "lora")
    packed = [record.settings[f"export.{name}"] for name in ("codec", "level", "attn_bits")]
    assert packed == ["auto", config["export"]["level"], 3]
    assert "eval.younger" not in record.settings
    plain = read_record(folder(tmp_path, "plain", config=config, result=RESULT))
    assert len(group_records([record, plain])) == 2
    assert read_record(folder(tmp_path, "bare", result=RESULT | done)).settings == {}


def test_settings_younger_than_the_run_are_at_their_default(tmp_path: Path) -> None:
    config = to_dict(RunConfig())
    del config["model"]["q_rank"], config["preset"]
    record = read_record(folder(tmp_path, config=config, result=RESULT))
    assert (record.settings["model.q_rank"], record.preset) == (192, "")


def test_an_imported_run_tells_what_it_knows(tmp_path: Path) -> None:
    result = {"artifact": {"standard": SCORE}}
    metrics = [{"step": 5, "train_loss": 3.0}, {"step": 90, "train_loss": 2.0}]
    timing = [{"step": 90, "seconds": 9.0}]
    record = read_record(folder(tmp_path, "bare", result=result, metrics=metrics, timing=timing))
    assert (record.settings, record.seed, record.bytes_total, record.stride) == ({}, None, None, None)
    assert (record.steps, record.train_seconds, record.step_ms) == (90, 9.0, pytest.approx(100))
    partial = folder(
        tmp_path, "partial", result=result, config={"model": {"n_layers": 9}, "train": {"seed": 4}}
    )
    assert read_record(partial).settings == {"model.n_layers": 9, "train.seed": 4}
    assert read_record(partial).seed == 4


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    for name, files, message in (
        ("none", {}, "is no run folder"),
        ("unfinished", {"config": to_dict(RunConfig())}, "is unfinished"),
        ("unscored", {"result": {"artifact": {}}}, "holds no score"),
    ):
        with pytest.raises(UserError, match=message):
            read_record(folder(tmp_path, name, **files))
    path = folder(tmp_path, "torn", result=RESULT)
    for text, message in (('{"artifact": ', "not valid JSON"), ("[]", "not a JSON object")):
        (path / "result.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read_record(path)


def test_a_run_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path, result=RESULT)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="named twice"):
        read_records([path, Path("run")])


def test_a_study_is_its_finished_runs(finished: Path, tmp_path: Path) -> None:
    for name in ("b", "a", "open"):
        shutil.copytree(finished, tmp_path / "study" / name)
    (tmp_path / "study/open/result.json").unlink()
    assert [record.name for record in read_records([tmp_path / "study"])] == ["a", "b"]
    assert runs_in(finished) == [finished]
    (tmp_path / "ablation").mkdir()
    for name in ("a-seed1", "b-seed1", "b-seed2"):
        folder(tmp_path / "ablation", name, result=RESULT, config={})
    (tmp_path / "ablation/study.json").write_text(json.dumps({"variations": {"b": {}, "a": {}}}))
    names = [run.name for run in runs_in(tmp_path / "ablation")]
    assert names == ["b-seed1", "b-seed2", "a-seed1"]  # the baseline first, as in the ablation's own table
    (tmp_path / "ablation/study.json").write_text('{"variations": 3}')
    assert [run.name for run in runs_in(tmp_path / "ablation")] == ["a-seed1", "b-seed1", "b-seed2"]
    with pytest.raises(UserError, match="named twice"):
        read_records([tmp_path / "study", tmp_path / "study/a"])
    for name in ("a", "b"):
        (tmp_path / f"study/{name}/result.json").unlink()
    with pytest.raises(UserError, match="a study of 3 runs, of which none is finished"):
        read_records([tmp_path / "study"])
