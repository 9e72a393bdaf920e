"""`pargolf export` on a finished run: what it writes, what the card tells, what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from pargolf.cli import dispatch
from pargolf.config.settings import model_from_dict
from pargolf.export.artifact import read_artifact
from pargolf.huggingface import folder as huggingface
from pargolf.system.files import new_folder

pytestmark = pytest.mark.usefixtures("module_cache")


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The files of the finished run that an export reads."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "result.json", "model.pgz", "tokenizer.model"):
        shutil.copyfile(finished / name, run / name)
    return run


def export(run: Path, out: Path, *options: object, form: str = "huggingface") -> int:
    return dispatch(["export", str(run), "--format", form, "-o", str(out), *map(str, options)])


def test_transformers_writes_what_pargolf_sample_writes(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "er"
    assert export(finished, out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert {path.name for path in out.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "modeling_pargolf.py", "README.md",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["er"]
    assert dispatch(["sample", str(finished), "The city", "--tokens", "20", "--temperature", "0"]) == 0
    expected = capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(out)
    model: Any = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    ids = model.generate(**tokenizer("The city", return_tensors="pt"), max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) + "\n" == expected


def test_the_card_tells_the_run_s_figures(finished: Path, tmp_path: Path) -> None:
    assert export(finished, tmp_path / "out") == 0
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.library_name == "transformers"
    result = json.loads((finished / "result.json").read_text())
    for how in ("standard", "sliding"):
        assert f"{result['artifact'][how]['val_bpb']:.4f}" in card.text
    for figure in ("bytes_model", "bytes_code", "bytes_total", "steps"):
        assert f"{result[figure]:,}" in card.text
    config = json.loads((finished / "config.json").read_text())
    assert config["data"]["dataset"] in card.text
    assert json.loads(card.text.split("```json")[1].split("```")[0]) == config


def test_the_card_makes_nothing_up(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(result | {"bytes_model": 1}))  # of another artifact
    assert export(copy, tmp_path / "other") == 0
    (copy / "result.json").unlink()
    assert export(copy, tmp_path / "unscored") == 0
    alone = tmp_path / "model.pgz"
    shutil.copyfile(copy / "model.pgz", alone)
    assert export(alone, tmp_path / "alone", "--tokenizer", copy / "tokenizer.model") == 0
    for name in ("other", "unscored", "alone"):
        card = (tmp_path / name / "README.md").read_text()
        assert "No score is recorded" in card
        assert "val_bpb" not in card
    assert "What it was trained on is not recorded" in card
    assert export(alone, tmp_path / "lost") == 2
    assert "name its tokenizer" in capsys.readouterr().err


def test_a_run_s_words_stay_among_the_settings(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["data"]["dataset"] = "x`\n```\n# Owned <script>"
    (copy / "config.json").write_text(json.dumps(config))
    assert export(copy, tmp_path / "out") == 0
    lines = (tmp_path / "out/README.md").read_text().splitlines()
    assert [line.strip() for line in lines if "Owned" in line] == [
        r'"dataset": "x`\n```\n# Owned \u003cscript\u003e",'
    ]
    result = json.loads((copy / "result.json").read_text())
    for wrong in ({"stride": "# Owned"}, {"artifact": {"standard": 1, "sliding": {"val_bpb": "x"}}}):
        (copy / "result.json").write_text(json.dumps(result | wrong))
        assert export(copy, tmp_path / "wrong") == 2
        assert "lacks a figure" in capsys.readouterr().err and not (tmp_path / "wrong").exists()


def test_plain_safetensors_are_the_artifact_s_weights(copy: Path, tmp_path: Path) -> None:
    assert export(copy, tmp_path / "out", form="safetensors") == 0
    artifact = read_artifact(copy / "model.pgz")
    weights = safetensors.torch.load_file(tmp_path / "out/model.safetensors")
    assert weights.keys() == artifact.state.keys()
    assert all(torch.equal(weights[name], value) for name, value in artifact.state.items())
    assert model_from_dict(json.loads((tmp_path / "out/config.json").read_text())) == artifact.model
    assert (tmp_path / "out/tokenizer.model").read_bytes() == (copy / "tokenizer.model").read_bytes()


def test_nothing_is_overwritten_and_nothing_half_written(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    assert export(copy, out) == 2
    assert "is there already; name another --out" in capsys.readouterr().err
    (out / "mine").unlink()

    def full(*arguments: object) -> bytes:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(huggingface, "_card", full)
        assert export(copy, out) == 2
    assert "No space left on device" in capsys.readouterr().err
    result = json.dumps({"bytes_model": (copy / "model.pgz").stat().st_size})
    (copy / "result.json").write_text(result)
    assert export(copy, out) == 2
    assert "lacks a figure" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    assert not any(out.iterdir())
    assert export(copy, out, form="safetensors") == 0  # an empty folder may be filled
    assert (out / "config.json").exists()


def test_a_new_folder_that_another_process_took_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OSError), new_folder(tmp_path / "out") as folder:
        (folder / "ours").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out/theirs").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_the_default_folder_names_run_and_format(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dispatch(["export", str(copy), "--format", "safetensors"]) == 0
    assert (tmp_path / "exports/run-safetensors/model.safetensors").exists()
