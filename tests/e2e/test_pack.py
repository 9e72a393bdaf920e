"""`pargolf pack` by the settings of a run and by others; packing to a goal is in test_pack_fit."""

import json
import shutil
from pathlib import Path

import pytest

from pargolf.cli import dispatch
from pargolf.config.presets import load_preset
from pargolf.config.settings import to_dict
from pargolf.export.artifact import read_artifact
from support import failure


def test_pack_repeats_byte_for_byte(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "model.pgz").unlink()
    assert dispatch(["pack", str(copy)]) == 0
    assert (copy / "model.pgz").read_bytes() == (finished / "model.pgz").read_bytes()
    assert "byte ledger" in capsys.readouterr().out


def test_over_budget_is_refused_with_the_reason(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    config = json.loads((copy / "config.json").read_text())
    config["export"]["budget"] = 1000
    (copy / "config.json").write_text(json.dumps(config))
    error = failure(capsys, "pack", copy)
    assert "1,000" in error
    assert "code" in error


def test_the_baseline_s_format_is_only_settings(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    config = json.loads((copy / "config.json").read_text())
    config["export"] = to_dict(load_preset("baseline").export)
    (copy / "config.json").write_text(json.dumps(config))
    assert dispatch(["pack", str(copy)]) == 0
    assert dispatch(["eval", str(copy)]) == 0
    old, new = (json.loads((folder / "result.json").read_text()) for folder in (finished, copy))
    trained = old["checkpoint"]["sliding"]["val_bpb"]
    assert new["artifact"]["sliding"]["val_bpb"] != old["artifact"]["sliding"]["val_bpb"]
    assert new["artifact"]["sliding"]["val_bpb"] == pytest.approx(trained, abs=0.01)
    assert read_artifact(copy / "model.pgz").export.codec == "zlib"


def test_pack_takes_the_smallest_form_when_asked(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    # The readable code of a better codec would be longer than what it saves.
    settings = (copy / "config.json").read_text().replace('"readable"', '"compressed"')
    (copy / "config.json").write_text(settings)
    before = (copy / "model.pgz").stat().st_size
    assert dispatch(["pack", str(copy), "--codec", "auto", "--layout", "auto"]) == 0
    export = read_artifact(copy / "model.pgz").export
    assert "auto" not in (export.codec, export.layout)
    assert (copy / "model.pgz").stat().st_size < before
    assert (copy / "config.json").read_text() == settings


def test_pack_takes_other_settings_for_one_packing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    settings, before = (copy / "config.json").read_text(), (copy / "model.pgz").stat().st_size
    assert dispatch(["pack", str(copy), "--export.mlp-bits", "4", "--export.attn-bits", "4"]) == 0
    assert read_artifact(copy / "model.pgz").export.mlp_bits == 4
    assert (copy / "model.pgz").stat().st_size < 0.9 * before
    assert (copy / "config.json").read_text() == settings
    assert "export.mlp_sigmas must be" in failure(capsys, "pack", copy, "--export.mlp-sigmas", "-1")
