"""Runs and artifacts of an older pargolf: today's reads them, or says in one line why not.

data/before_rooms holds what commit f855232 (2026-11-27) left of a tiny run on the first 1,500
characters of 20 embedded articles (Wikipedia, CC BY-SA): its folder, its dataset, and two artifacts
of runs with explorations, packed with layout range and codec brotli. The paths in its config.json
are relative: a test works in a copy of the folder.
"""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch

import pargolf
from artifact_support import parts, sealed
from pargolf.cli import dispatch
from pargolf.data.dataset import open_validation
from pargolf.export.artifact import assemble, read_artifact
from pargolf.run.folder import open_run
from pargolf.score.windows import score

KEPT = Path(__file__).parent / "data/before_rooms"
SCORES: dict[str, dict[str, float]] = json.loads((KEPT / "scores.json").read_text())
# Not exactly: in float32 the AVX2 kernels of PyTorch move these scores by up to 1.5e-9 of their value
# against those of AVX-512, on one AMD EPYC.
SAME = 1e-8


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old folder, and the working directory."""
    copy = tmp_path / "before"
    shutil.copytree(KEPT, copy)
    monkeypatch.chdir(copy)
    return copy


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command line is refused."""
    assert dispatch(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("pargolf: error: ") and error.count("\n") == 1
    return error


def test_an_old_run_scores_as_it_did(before: Path) -> None:
    run, config = open_run(Path("run"))
    assert (config.model.q_rank, config.train.iterations, config.eval.stride) == (4, 12, 16)
    old = json.loads(run.result.read_text())
    assert dispatch(["eval", "run"]) == 0
    new = json.loads(run.result.read_text())
    for of in ("artifact", "checkpoint"):
        for how in ("standard", "sliding"):
            assert new[of][how]["val_bpb"] == pytest.approx(old[of][how]["val_bpb"], rel=SAME)
            assert new[of][how]["bytes"] == old[of][how]["bytes"]
    assert new["bytes_model"] == old["bytes_model"]


def test_an_old_finished_run_is_finished(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its settings handed in again, as those of a preset of one's own."""
    settings = json.loads(Path("run/config.json").read_text())
    lines: list[str] = []
    for section, values in settings.items():
        lines += [f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
    Path("old.toml").write_text("\n".join(lines))
    weights = Path("run/checkpoint.safetensors").read_bytes()
    assert dispatch(["train", "old.toml", "--runs", ".", "--name", "run"]) == 0
    assert "training is already finished, at step 12" in capsys.readouterr().out
    assert Path("run/checkpoint.safetensors").read_bytes() == weights


def test_an_old_run_is_packed_to_the_same_values(before: Path) -> None:
    old = read_artifact(Path("run/model.pgz"))
    assert dispatch(["pack", "run"]) == 0
    new = read_artifact(Path("run/model.pgz"))
    assert new.model == old.model and new.export == old.export
    assert new.state.keys() == old.state.keys()
    assert all(torch.equal(new.state[name], old.state[name]) for name in old.state)


def test_an_old_run_is_reported_and_compared(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["compare", "run"]) == 0
    assert "4.4737" in capsys.readouterr().out
    assert dispatch(["report", "run", "--out", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "4.4737" in page and "</html>" in page


@pytest.mark.parametrize("name", SCORES)
def test_an_old_artifact_scores_as_it_did(
    name: str, before: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pargolf.bundle.single_file.code_bytes", lambda config: 20_000)
    with_its_data = ["--tokenizer", "tokenizer.model", "--dataset", "dataset", "--stride", "16"]
    assert dispatch(["eval", name, *with_its_data]) == 0
    out = capsys.readouterr().out
    assert all(f"{bpb:.4f}" in out for bpb in SCORES[name].values())
    model = pargolf.load(name, tokenizer="tokenizer.model")
    text = open_validation(Path("dataset"), model.tokenizer)
    for how, stride in (("standard", 64), ("sliding", 16)):
        bpb = score(model.gpt, text, stride, 64).val_bpb
        assert bpb == pytest.approx(SCORES[name][how], rel=SAME)


@pytest.mark.parametrize("version", [0, 1, 3, 2**32 - 1])
def test_an_artifact_of_another_version_is_refused(
    version: int, before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path("run/model.pgz").read_bytes()
    body = data[:8] + struct.pack("<I", version) + data[12:-32]
    Path("run/model.pgz").write_bytes(sealed(body))
    error = refusal(capsys, "eval", "run")
    assert f"run/model.pgz: artifact version {version}; this pargolf reads version 2" in error


def test_the_layout_packed_is_refused(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is gone since 2026-11-28; that of the header stands for what such a file holds."""
    header, payloads = parts(Path("run/model.pgz").read_bytes())
    header["export"]["layout"] = "packed"
    Path("packed.pgz").write_bytes(assemble(header, payloads))
    gone = "export.layout packed was removed; pargolf 0.1.0 before 2026-11-28 reads it"
    with_its_data = ["--tokenizer", "tokenizer.model", "--dataset", "dataset"]
    error = refusal(capsys, "eval", "packed.pgz", *with_its_data)
    assert f"packed.pgz: {gone}" in error and "pack the run again" in error

    config = Path("run/config.json")
    config.write_text(config.read_text().replace('"layout": "bytes"', '"layout": "packed"'))
    for command in ("pack", "eval"):
        error = refusal(capsys, command, "run")
        assert gone in error and "config.json" in error and "pack the run again" in error
