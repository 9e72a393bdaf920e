import json
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from pargolf.cli import dispatch
from pargolf.data import prepare
from pargolf.data.dataset import open_training, open_validation
from pargolf.data.prepare import PreparedData, prepare_embedded, prepare_files
from pargolf.data.record import read_record
from pargolf.data.shards import open_split
from pargolf.data.text import decoded, measured
from pargolf.data.tokenizer import Tokenizer
from pargolf.system.errors import UserError

PROSE = "the quick brown fox jumps over a lazy dog while twelve naïve geese fly south"
WORDS = PROSE.split()


def make_texts() -> list[str]:
    rng = random.Random(2)
    return [" " + " ".join(rng.choices(WORDS, k=60)) + f"\n\u2581{i}\n" for i in range(12)]


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_texts(tmp_path / "text.jsonl", make_texts())]


def make(files: list[Path], root: Path, **options: object) -> PreparedData:
    return prepare_files("mine", files, vocab_size=320, val_fraction=0.25, root=root, **options)  # type: ignore[arg-type]


def test_dataset_holds_the_documents(files: list[Path], tmp_path: Path) -> None:
    done = make(files, tmp_path)
    assert done.made and done.dataset == tmp_path / "datasets" / "mine_sp320"
    assert done.tokenizer == tmp_path / "tokenizers" / "mine_320_bpe.model"
    tokenizer = Tokenizer(done.tokenizer)
    assert done.record.tokenizer_sha256 == tokenizer.sha256
    assert read_record(done.dataset) == done.record
    texts = make_texts()
    seen: list[str] = []
    for split, count in (("train", 9), ("val", 3)):
        stream = open_split(done.dataset, split)  # type: ignore[arg-type]
        tokens = stream.read(0, len(stream))
        assert tokens[0] == tokenizer.bos_id and (tokens == tokenizer.bos_id).sum() == count
        text = decoded(tokens, tokenizer)
        assert len(text) == measured(tokens, tokenizer).bytes
        found = done.record.splits[split]
        assert (found.documents, found.tokens, found.bytes) == (count, len(stream), len(text))
        members = [document for document in texts if document in text.decode()]
        assert "".join(members) == text.decode()
        seen += members
    assert sorted(seen) == sorted(texts)


def test_done_work_is_not_done_again(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(files, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "train_tokenizer", lambda *_: pytest.fail("trained again"))
        second = make(files, tmp_path)
    assert not second.made and second.record == first.record


@pytest.mark.parametrize("damage", ["shard", "tokenizer", "stale"])
def test_damage_is_mended(files: list[Path], tmp_path: Path, damage: str) -> None:
    first = make(files, tmp_path)
    shard = first.dataset / "fineweb_train_000000.bin"
    stale = first.dataset / "fineweb_train_000001.bin"
    if damage == "shard":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "tokenizer":
        first.tokenizer.write_bytes(b"x")
    else:
        stale.write_bytes(shard.read_bytes())
    again = make(files, tmp_path)
    assert again.made and not stale.exists() and again.record == first.record


@pytest.mark.parametrize("change", ["text", "no record", "damaged record"])
def test_another_dataset_is_not_overwritten_unasked(files: list[Path], tmp_path: Path, change: str) -> None:
    first = make(files, tmp_path)
    if change == "text":
        write_texts(files[0], [*make_texts(), "one more document"])
    elif change == "no record":
        (first.dataset / "dataset.json").unlink()
    else:
        (first.dataset / "dataset.json").write_text("{")
    before = {path.name: path.read_bytes() for path in first.dataset.iterdir()} | {
        "model": first.tokenizer.read_bytes()
    }
    with pytest.raises(UserError, match="--overwrite"):
        make(files, tmp_path)
    assert before == {path.name: path.read_bytes() for path in first.dataset.iterdir()} | {
        "model": first.tokenizer.read_bytes()
    }
    again = make(files, tmp_path, overwrite=True)
    assert again.made and (again.record == first.record) == (change != "text")
    assert [path.name for path in first.dataset.parent.iterdir()] == [first.dataset.name]


def test_a_failure_leaves_what_was_there(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = make(files, tmp_path)
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: "something else")
    with pytest.raises(UserError, match="does not reproduce"):
        make(files, tmp_path, overwrite=True)
    assert read_record(done.dataset) == done.record
    assert [path.name for path in done.dataset.parent.iterdir()] == [done.dataset.name]


def test_equal_documents_stay_on_one_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [*make_texts(), *make_texts()[:3], *make_texts()[:3]]
    source = write_texts(tmp_path / "repeated.jsonl", texts)
    command = ["data", "--text", str(source), "--vocab-size", "320", "--root", str(tmp_path)]
    assert dispatch([*command, "--val-fraction", "0.3"]) == 0
    assert "6 documents equal others" in capsys.readouterr().out
    dataset = tmp_path / "datasets/repeated_sp320"
    tokenizer = Tokenizer(tmp_path / "tokenizers/repeated_320_bpe.model")
    val = decoded(open_validation(dataset, tokenizer).tokens, tokenizer).decode()
    stream = open_training(dataset, tokenizer)
    train = decoded(stream.read(0, len(stream)), tokenizer).decode()
    for text in make_texts():
        assert (text in val) != (text in train)
    assert len(val + train) == sum(map(len, texts))


def test_large_splits_become_several_shards(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(files, tmp_path)
    before = open_split(whole.dataset, "train")
    expected = before.read(0, len(before))
    monkeypatch.setattr(prepare, "SHARD_TOKENS", 100)
    cut = make(files, tmp_path / "cut")
    stream = open_split(cut.dataset, "train")
    assert len(stream.paths) == -(-len(expected) // 100)
    np.testing.assert_array_equal(stream.read(0, len(stream)), expected)


def test_rejects(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset name"):
        prepare_files("../x", files, root=tmp_path)


def test_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gensim")
    first = prepare_embedded(root=tmp_path)
    assert first.dataset.name == "demo_sp1024" and first.tokenizer.name == "demo_1024_bpe.model"
    splits = first.record.splits
    assert (splits["train"].documents, splits["val"].documents) == (95, 11)
    assert splits["train"].bytes is not None
    assert 2.3 < splits["train"].bytes / splits["train"].tokens < 2.4
    monkeypatch.setattr(prepare, "embedded_documents", lambda: pytest.fail("parsed again"))
    assert not prepare_embedded(root=tmp_path).made


def test_a_record_of_before_is_read(files: list[Path], tmp_path: Path) -> None:
    done = make(files, tmp_path)
    old = json.loads((done.dataset / "dataset.json").read_text()) | {"documents_sha256": "0" * 64}
    (done.dataset / "dataset.json").write_text(json.dumps(old))
    record = read_record(done.dataset)
    assert record is not None and asdict(record) == asdict(done.record)
