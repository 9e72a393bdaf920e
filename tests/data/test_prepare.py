import json
import random
from pathlib import Path

import numpy as np
import pytest

from pargolf.data import prepare
from pargolf.data.prepare import PreparedData, prepare_embedded, prepare_files, read_text
from pargolf.data.shards import open_split
from pargolf.data.tokenizer import Tokenizer
from pargolf.system.errors import UserError

PROSE = "the quick brown fox jumps over a lazy dog while twelve naïve geese fly south"
WORDS = PROSE.split()


def make_texts() -> list[str]:
    rng = random.Random(2)
    return [" " + " ".join(rng.choices(WORDS, k=60)) + f"\n\u2581{i}\n" for i in range(12)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in make_texts()))
    return [path]


def make(files: list[Path], root: Path, **options: object) -> PreparedData:
    return prepare_files("mine", files, vocab_size=320, val_fraction=0.25, root=root, **options)  # type: ignore[arg-type]


def test_dataset_holds_the_documents(files: list[Path], tmp_path: Path) -> None:
    done = make(files, tmp_path)
    assert done.made and done.dataset == tmp_path / "datasets" / "mine_sp320"
    assert done.tokenizer == tmp_path / "tokenizers" / "mine_320_bpe.model"
    tokenizer = Tokenizer(done.tokenizer)
    assert done.record["tokenizer_sha256"] == tokenizer.sha256
    assert json.loads((done.dataset / "dataset.json").read_text()) == done.record
    texts = make_texts()
    seen: list[str] = []
    for split, count in (("train", 9), ("val", 3)):
        stream = open_split(done.dataset, split)  # type: ignore[arg-type]
        tokens = stream.read(0, len(stream))
        assert tokens[0] == tokenizer.bos_id and (tokens == tokenizer.bos_id).sum() == count
        text = read_text(stream, tokenizer)
        table = tokenizer.byte_table()
        assert len(text) == table.count(tokens[:-1], tokens[1:]).sum()
        numbers = done.record["splits"][split]
        assert (numbers["documents"], numbers["tokens"], numbers["bytes"]) == (count, len(stream), len(text))
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


@pytest.mark.parametrize("damage", ["record", "shard", "tokenizer", "stale", "text"])
def test_damage_or_change_is_mended(files: list[Path], tmp_path: Path, damage: str) -> None:
    first = make(files, tmp_path)
    shard = first.dataset / "fineweb_train_000000.bin"
    stale = first.dataset / "fineweb_train_000001.bin"
    if damage == "record":
        (first.dataset / "dataset.json").write_text("{")
    elif damage == "shard":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "tokenizer":
        first.tokenizer.write_bytes(b"x")
    elif damage == "stale":
        stale.write_bytes(shard.read_bytes())
    else:
        files[0].write_text(files[0].read_text() + '\n{"text": "one more document"}')
    again = make(files, tmp_path)
    assert again.made and not stale.exists()
    assert (again.record == first.record) == (damage != "text")


def test_a_failure_leaves_no_completion_mark(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = make(files, tmp_path)
    done.tokenizer.unlink()
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: "something else")
    with pytest.raises(UserError, match="does not reproduce"):
        make(files, tmp_path)
    assert not (done.dataset / "dataset.json").exists()


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
    done = make(files, tmp_path)
    stream = open_split(done.dataset, "val")
    tokenizer = Tokenizer(done.tokenizer)
    tokenizer.vocab_size = 10
    with pytest.raises(UserError, match="another tokenizer"):
        read_text(stream, tokenizer)


def test_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gensim")
    first = prepare_embedded(root=tmp_path)
    assert first.dataset.name == "demo_sp1024" and first.tokenizer.name == "demo_1024_bpe.model"
    splits = first.record["splits"]
    assert (splits["train"]["documents"], splits["val"]["documents"]) == (95, 11)
    assert 2.3 < splits["train"]["bytes"] / splits["train"]["tokens"] < 2.4
    monkeypatch.setattr(prepare, "embedded_documents", lambda: pytest.fail("parsed again"))
    assert not prepare_embedded(root=tmp_path).made
