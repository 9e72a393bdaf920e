"""`pargolf pack --fit` and `--max-loss` on a tiny trained run, and what is made of it."""

import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from pargolf.bundle import single_file
from pargolf.cli import dispatch
from pargolf.config.settings import read_config
from pargolf.export.artifact import read_artifact
from pargolf.fit.calibrate import bits_per_byte, spread_rows
from pargolf.fit.pack import OTHER_DIGITS, with_goal
from pargolf.model.gpt import GPT
from pargolf.run.target import find_target, load_model
from pargolf.train.checkpoint import load_weights
from support import Dataset

SPARE = 2 * OTHER_DIGITS  # which one seed's code may leave over


@pytest.fixture
def copy(finished: Path, dataset: Dataset, tmp_path: Path) -> Path:
    """The finished run, whose dataset has lost its validation shards: reading them would fail."""
    shards = tmp_path / "train-only"
    shards.mkdir()
    for shard in dataset.folder.glob("fineweb_train_*.bin"):
        shutil.copy(shard, shards)
    shutil.copytree(finished, tmp_path / "run")
    text = (finished / "config.json").read_text()
    text = text.replace('"calibration_tokens": 65536', '"calibration_tokens": 4096')
    (tmp_path / "run/config.json").write_text(text.replace(str(dataset.folder), str(shards)))
    return tmp_path / "run"


def total(printed: str) -> int:
    """Bytes of code and model, as the ledger shows them."""
    found = re.search(r"│ total[^\d]*([\d,]+)", printed)
    assert found is not None, printed
    return int(found[1].replace(",", ""))


def code_bytes(run: Path) -> int:
    """Bytes that `--fit` takes for the code."""
    goal = with_goal(read_config(run / "config.json"), 15_000_000, None, single_file.code_bytes)
    return 15_000_000 - goal.export.model_bytes


def test_budgets_are_filled_to_a_thousandth(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = (copy / "config.json").read_text()
    for form, model_bytes in (("readable", 9_000), ("compressed", 17_000), ("minified", 24_000)):
        (copy / "config.json").write_text(settings.replace('"readable"', f'"{form}"'))
        budget = code_bytes(copy) + model_bytes
        assert dispatch(["pack", str(copy), "--fit", str(budget)]) == 0
        out = capsys.readouterr().out
        assert budget - SPARE - model_bytes / 1000 < total(out) <= budget
        assert "are left" not in out
        artifact = read_artifact(copy / "model.pgz")
        assert artifact.export.model_bytes == model_bytes
        assert (copy / "model.pgz").stat().st_size <= model_bytes
        load_model(artifact)


def test_more_bytes_than_the_best_takes_are_left_over(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["pack", str(copy), "--fit", "16000000"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    found = re.search(r"even the best quality takes ([\d,]+) bytes: ([\d,]+) are left", said)
    assert found is not None, said
    used, left = (int(group.replace(",", "")) for group in found.groups())
    assert used == total(said) and 16_000_000 - SPARE < used + left <= 16_000_000


def test_a_loss_is_kept_on_training_text_that_calibration_has_not_seen(finished: Path, copy: Path) -> None:
    target = find_target(copy)
    assert target.run is not None and target.config is not None
    trained = GPT(target.config.model)
    load_weights(target.run.checkpoint, trained)
    _, held_back = spread_rows(target.training(), 64, target.config.export.calibration_tokens)
    assert dispatch(["pack", str(copy), "--max-loss", "0.03"]) == 0
    artifact, tokenizer = target.open()
    table = tokenizer.byte_table()
    before, after = (bits_per_byte(m, held_back, table) for m in (trained, load_model(artifact)))
    assert 0.027 < after - before <= 0.03
    assert (copy / "model.pgz").stat().st_size < 0.7 * (finished / "model.pgz").stat().st_size


def test_it_is_never_larger_and_worse_than_plain_rounding(finished: Path, copy: Path) -> None:
    """By what it measures: training text that calibration has not seen."""
    target = find_target(copy)
    assert target.config is not None
    _, held_back = spread_rows(target.training(), 64, target.config.export.calibration_tokens)

    def packed(run: Path) -> tuple[int, float]:
        artifact, tokenizer = find_target(run).open()
        loss = bits_per_byte(load_model(artifact), held_back, tokenizer.byte_table())
        return (run / "model.pgz").stat().st_size, loss

    plain_size, plain_loss = packed(finished)
    for model_bytes in (plain_size, plain_size + 500, plain_size + 5000, 15_000_000):
        assert dispatch(["pack", str(copy), "--fit", str(code_bytes(copy) + model_bytes)]) == 0
        size, loss = packed(copy)
        assert size <= model_bytes and loss <= plain_loss
    # More bytes than integers can use go to the embedding, in float16.
    assert size > plain_size and torch.equal(
        read_artifact(copy / "model.pgz").state["embed.weight"],
        read_artifact(finished / "model.pgz").state["embed.weight"],
    )


def test_plain_rounding_is_kept_where_fitting_finds_nothing_better(
    finished: Path, copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pargolf.fit.pack.fit_bytes", lambda *_: math.exp(5))  # zeros
    assert dispatch(["pack", str(copy), "--fit", "16000000"]) == 0
    assert "plain rounding is kept, as the best: fitted" in capsys.readouterr().out
    kept, plain = (read_artifact(run / "model.pgz").state for run in (copy, finished))
    assert all(torch.equal(kept[name], x) for name, x in plain.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fit", "1000"], "the code alone takes"),
        (["--fit", "0"], "--fit must be above 0"),
        (["--fit", "-5"], "--fit must be above 0"),
        (["--max-loss", "0"], "--max-loss must be above 0"),
        (["--max-loss", "nan"], "--max-loss must be above 0"),
        (["--fit", "16000000", "--max-loss", "0.01"], "set one"),
        (["--fit", "much"], "invalid"),
    ],
)
def test_goals_that_cannot_be_met_are_one_clear_line(
    options: list[str], message: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (copy / "model.pgz").read_bytes()
    assert dispatch(["pack", str(copy), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (copy / "model.pgz").read_bytes() == before


def test_not_even_zeros_fit(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["pack", str(copy), "--fit", str(code_bytes(copy) + 300)]) == 2
    assert "no rounding brings the model down to 300 bytes" in capsys.readouterr().err
