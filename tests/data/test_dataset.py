"""Shards, tokenizer, dataset.json and sidecar: what does not belong together is never scored."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pargolf.cli import dispatch
from pargolf.config.schema import DataConfig, ModelConfig, RunConfig
from pargolf.data.dataset import UNRECORDED, load_data, open_training, open_validation
from pargolf.data.shards import PART, open_split, write_shard
from pargolf.data.text import decoded, measured
from pargolf.data.tokenizer import SPACE, Tokenizer, train_tokenizer
from pargolf.system.errors import UserError
from support import Dataset
from tokenizer_support import CaseOps, train_model


def write_val(folder: Path, tokens: list[int] | np.ndarray, split: str = "val") -> Path:
    write_shard(folder / f"fineweb_{split}_000000.bin", np.asarray(tokens))
    return folder


@pytest.fixture
def copy(dataset: Dataset, tmp_path: Path) -> Path:
    return shutil.copytree(dataset.folder, tmp_path / "copy")


@pytest.fixture
def other(dataset: Dataset, tmp_path: Path) -> Tokenizer:
    """Another tokenizer of the same size."""
    train_tokenizer([text[::-1] for text in dataset.documents], 512, tmp_path / "other.model")
    return Tokenizer(tmp_path / "other.model")


def test_what_belongs_together_is_opened_without_a_doubt(dataset: Dataset) -> None:
    tokenizer = Tokenizer(dataset.tokenizer)
    text = open_validation(dataset.folder, tokenizer)
    assert text.doubt == "" and text.tokenizer is tokenizer
    assert text.bytes == len(decoded(text.tokens, tokenizer))
    assert text.sizes[0] == 0 and len(text.sizes) == len(text)


def test_another_tokenizer_of_equal_size_is_refused(dataset: Dataset, other: Tokenizer) -> None:
    for opening in (open_training, open_validation):
        with pytest.raises(UserError, match="made with another tokenizer"):
            opening(dataset.folder, other)


def test_shards_from_elsewhere_are_doubted(copy: Path, dataset: Dataset) -> None:
    (copy / "dataset.json").unlink()
    assert open_validation(copy, Tokenizer(dataset.tokenizer)).doubt == UNRECORDED


def test_other_shards_under_a_record_are_refused(copy: Path, dataset: Dataset) -> None:
    tokenizer, tokens = Tokenizer(dataset.tokenizer), open_split(copy, "val").read(0, 10_000)
    length = len(open_split(copy, "val"))
    write_val(copy, tokens[: length - 1])
    with pytest.raises(UserError, match="val tokens, but its dataset"):
        open_validation(copy, tokenizer)
    write_val(copy, tokens[:length][::-1])  # as many, another first token
    with pytest.raises(UserError, match="val bytes, but its dataset"):
        open_validation(copy, tokenizer)


@pytest.mark.parametrize("content", ["{", "[]", '{"splits": 3}', '{"recipe": {}, "splits": {"val": {}}}'])
def test_a_damaged_record_is_refused(copy: Path, dataset: Dataset, content: str) -> None:
    (copy / "dataset.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        open_validation(copy, Tokenizer(dataset.tokenizer))


@pytest.mark.parametrize("option", [{"smear": "late"}, {"bigram_rows": 9}, {"documents": "apart"}], ids=str)
def test_options_that_stop_at_a_document_must_know_its_first_token(
    option: dict[str, Any], dataset: Dataset
) -> None:
    data = DataConfig(dataset=str(dataset.folder), tokenizer=str(dataset.tokenizer))
    model = ModelConfig(vocab_size=512, bos_id=2)
    assert load_data(RunConfig(model, data)).val.doubt == ""
    with pytest.raises(UserError, match=r"begins a document with token 1, but model\.bos_id is 2"):
        load_data(RunConfig(replace(model, **option), data))


def test_so_must_rows_that_begin_with_documents(dataset: Dataset) -> None:
    data = DataConfig(str(dataset.folder), str(dataset.tokenizer), order="documents")
    load_data(RunConfig(ModelConfig(vocab_size=512), data))
    with pytest.raises(UserError, match=r"begins a document with token 1, but model\.bos_id is 2"):
        load_data(RunConfig(ModelConfig(vocab_size=512, bos_id=2), data))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_late_foreign_token_is_found(
    split: str, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = np.full(1_300_000, 300)
    tokens[1_100_000] = 600
    for name in ("train", "val"):
        write_val(tmp_path, tokens if name == split else [1, 300, 300], name)
    options = dataset.options(data__dataset=tmp_path)
    assert dispatch(["train", "demo", "--runs", str(tmp_path), *options]) == 2
    said = capsys.readouterr()
    assert "step:" not in said.out
    assert "holds token 600 at position 1,100,000" in said.err and said.err.count("\n") == 1


def test_each_rank_looks_at_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pargolf.data.shards.PART", 10)
    tokens = np.zeros(95, int)
    tokens[47] = 9
    stream = open_split(write_val(tmp_path, tokens), "val")
    assert [stream.find_above(8, share, 3) for share in range(3)] == [-1, 47, -1]
    assert stream.find_above(9) == -1
    assert PART > 10 and stream.locate(47) == (stream.paths[0], 47)


@pytest.mark.parametrize(
    ("tokens", "message"), [([1], "one validation token"), ([1, 1, 1], "no byte to score")]
)
def test_a_stream_without_text_is_refused_before_the_first_step(
    tokens: list[int], message: str, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_val(tmp_path, tokens)
    write_val(tmp_path, np.full(1000, 300), "train")
    options = dataset.options(data__dataset=tmp_path)
    assert dispatch(["train", "demo", "--runs", str(tmp_path), *options]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and "step:" not in said.out


def test_unknown_tokens_are_refused(tmp_path: Path) -> None:
    tokenizer = train_model(tmp_path / "t.model", 60, byte_fallback=False)
    ids = [tokenizer.bos_id, *tokenizer.encode("the city 漢字")]
    with pytest.raises(UserError, match=r"1 of \d+ tokens \(\d+\.\d%\) are unknown"):
        open_validation(write_val(tmp_path, ids), tokenizer)
    known = measured(np.array([tokenizer.bos_id, *tokenizer.encode("the city")]), tokenizer)
    assert known.bytes == len("the city")


def test_a_vocabulary_without_a_lone_space_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    model = dataset.tokenizer.read_bytes()
    lone = b"\x0a\x03" + SPACE.encode()  # the piece's text, a field of three bytes
    assert model.count(lone) == 1
    (tmp_path / "t.model").write_bytes(model.replace(lone, b"\x0a\x03\xe2\x96\x82"))
    with pytest.raises(UserError, match=r"no piece for a space alone \(U\+2581\)"):
        Tokenizer(tmp_path / "t.model")


def test_spaces_after_words_are_refused(tmp_path: Path) -> None:
    tokenizer = train_model(tmp_path / "t.model", 380, treat_whitespace_as_suffix=True)
    with pytest.raises(UserError, match="in a way whose bytes cannot be counted"):
        tokenizer.byte_table()


def test_the_sidecar_counts_the_bytes_and_is_not_read_as_tokens(case_ops: CaseOps, tmp_path: Path) -> None:
    tokenizer, ids, sizes = case_ops
    write_val(tmp_path, ids)
    write_shard(tmp_path / "fineweb_val_bytes_000000.bin", sizes)
    text = open_validation(tmp_path, tokenizer)
    assert text.tokens.tolist() == ids.tolist() and text.sizes.tolist() == sizes.tolist()
    assert text.bytes == len("The N\ue001 漢".encode())


def test_operators_without_a_sidecar_are_refused(case_ops: CaseOps, tmp_path: Path) -> None:
    tokenizer, ids, _ = case_ops
    with pytest.raises(UserError, match="fineweb_val_bytes"):
        open_validation(write_val(tmp_path, ids), tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sizes: sizes[:-1], "but the shards hold"),
        (lambda sizes: sizes + 1, "more than it can stand for"),
        (lambda sizes: np.roll(sizes, 1), "more than it can stand for"),
        (lambda sizes: sizes * 0, "no byte to score"),
    ],
)
def test_a_sidecar_of_other_tokens_is_refused(
    case_ops: CaseOps, change: Callable[[np.ndarray], np.ndarray], message: str, tmp_path: Path
) -> None:
    tokenizer, ids, sizes = case_ops
    write_val(tmp_path, ids)
    write_shard(tmp_path / "fineweb_val_bytes_000000.bin", change(sizes))
    with pytest.raises(UserError, match=message):
        open_validation(tmp_path, tokenizer)


def test_every_command_refuses_shards_of_another_tokenizer(
    finished: Path,
    dataset: Dataset,
    other: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run's dataset is replaced by one of other tokens, as many and as wide."""
    foreign = tmp_path / "foreign"
    shutil.copytree(dataset.folder, foreign)
    record = json.loads((foreign / "dataset.json").read_text()) | {"tokenizer_sha256": other.sha256}
    (foreign / "dataset.json").write_text(json.dumps(record))
    run = shutil.copytree(finished, tmp_path / "run")
    options = dataset.options(data__dataset=foreign)
    about = ["--author", "a", "--github-id", "a", "--name", "n", "--out", tmp_path / "out"]
    for command in (
        ["train", "demo", "--runs", tmp_path, "--name", "new", *options],
        ["eval", run, "--dataset", foreign],
        ["eval", run, "--dataset", foreign, "--stride", "auto"],
        ["verify", run, "--dataset", foreign],
        ["report", run, "--dataset", foreign, "--out", tmp_path / "page.html"],
        ["submit", run, "--dataset", foreign, *about],
        ["pack", run, "--fit", "400000", "--dataset", foreign],
    ):
        assert dispatch([str(word) for word in command]) == 2, command[0]
        said = capsys.readouterr().err
        assert "made with another tokenizer" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "page.html").exists()


def test_a_moved_run_is_read_with_its_dataset_named(
    finished: Path,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run's own path to its dataset leads nowhere."""
    run = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"dataset": "data/moved", "tokenizer": "data/moved.model"}
    (run / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    about = ["--author", "a", "--github-id", "a", "--name", "n"]
    for command in (
        ["eval", run, "--batch-rows", "64"],
        ["submit", run, *about, "--out", tmp_path / "out"],
        ["report", run, "--tokens", "500"],
        ["pack", run, "--fit", "400000"],
    ):
        words = [str(word) for word in command]
        code = dispatch(words)
        shown = capsys.readouterr().err + ((run / "report.html").read_text() if code == 0 else "")
        assert code == (0 if command[0] == "report" else 2)  # a page says it in the part that lacks them
        assert "data/moved" in shown and "--dataset" in shown
        assert dispatch([*words, "--dataset", str(dataset.folder)]) == 0
    assert "no fineweb" not in (run / "report.html").read_text()
