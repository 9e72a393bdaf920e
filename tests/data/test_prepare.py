import json
import random
import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pargolf.cli import dispatch
from pargolf.data import prepare, shards
from pargolf.data.dataset import open_training, open_validation
from pargolf.data.files import text_files
from pargolf.data.prepare import PreparedData, prepare_embedded, prepare_files
from pargolf.data.record import read_record
from pargolf.data.shards import open_split
from pargolf.data.text import decoded, measured
from pargolf.data.tokenizer import Tokenizer
from pargolf.system.errors import UserError
from tokenizer_support import train_model

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
    settings: dict[str, Any] = {"name": "mine", "vocab_size": 320, "val_fraction": 0.25} | options
    return prepare_files(text_files(files), root=root, **settings)


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
    monkeypatch.setattr(Tokenizer, "decode_all", lambda self, ids, threads: ["something else"] * len(ids))
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
    monkeypatch.setattr(shards, "SHARD_TOKENS", 100)
    cut = make(files, tmp_path / "cut")
    stream = open_split(cut.dataset, "train")
    assert len(stream.paths) == -(-len(expected) // 100)
    np.testing.assert_array_equal(stream.read(0, len(stream)), expected)


def test_rejects(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset name"):
        make(files, tmp_path, name="../x")


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


def test_a_cap_holds_out_less(files: list[Path], tmp_path: Path) -> None:
    whole, capped = make(files, tmp_path / "whole"), make(files, tmp_path / "capped", val_bytes=800)
    assert whole.record.splits["val"].documents == 3
    assert capped.record.splits["val"].bytes is not None and capped.record.splits["val"].bytes <= 800
    assert any("limited to 800 bytes" in note for note in capped.notes) and not whole.notes
    assert make(files, tmp_path / "whole", val_bytes=1_000_000).record == whole.record
    one = make(files, tmp_path / "one", val_bytes=1)
    assert one.record.splits["val"].documents == 1
    assert any(
        f"but the least that can be held out has {one.record.splits['val'].bytes}" in n for n in one.notes
    )


def test_fixed_validation_text_is_never_trained_on(files: list[Path], tmp_path: Path) -> None:
    held_out = write_texts(tmp_path / "val.jsonl", [make_texts()[4], "some other text"])
    done = make(files, tmp_path, val=text_files([held_out]))
    tokenizer = Tokenizer(done.tokenizer)
    assert decoded(open_validation(done.dataset, tokenizer).tokens, tokenizer).decode() == (
        make_texts()[4] + "some other text"
    )
    assert done.record.splits["train"].documents == 11
    assert any("1 training documents equal validation documents" in note for note in done.notes)
    with pytest.raises(UserError, match="no training text is left"):
        make([held_out], tmp_path, val=text_files([held_out]), overwrite=True)


def test_a_tokenizer_of_one_s_own(files: list[Path], tmp_path: Path) -> None:
    folding = train_model(tmp_path / "fold.model", 350, normalization_rule_name="nmt_nfkc_cf")
    done = make(files, tmp_path, tokenizer=folding.path)
    assert done.dataset.name == "mine_sp350" and Tokenizer(done.tokenizer).sha256 == folding.sha256
    assert any("changes 12 documents" in note for note in done.notes)  # each begins with a space
    assert open_validation(done.dataset, folding).bytes == done.record.splits["val"].bytes
    lacking = train_model(tmp_path / "few.model", 60, byte_fallback=False)
    with pytest.raises(UserError, match="unknown to"):
        make(files, tmp_path, name="few", tokenizer=lacking.path)


def test_a_tokenizer_with_more_pieces_than_shards_have_ids_for(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "Tokenizer", lambda path: SimpleNamespace(vocab_size=70_000, sha256="0"))
    with pytest.raises(UserError, match="has 70,000 pieces, but shards hold 16-bit ids"):
        make(files, tmp_path, tokenizer=tmp_path / "large.model")


def test_the_tokenizer_learns_from_a_sample_of_the_training_text(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "TOKENIZER_BYTES", 1500)
    seen: list[str] = []
    train = prepare.train_tokenizer

    def watched(texts: list[str], *settings: Any) -> None:
        seen.extend(texts)
        train(texts, *settings)

    monkeypatch.setattr(prepare, "train_tokenizer", watched)
    done = make(files, tmp_path)
    tokenizer = Tokenizer(done.tokenizer)
    val = decoded(open_validation(done.dataset, tokenizer).tokens, tokenizer).decode()
    assert 2 <= len(seen) <= 4 and not any(text in val for text in seen)
    assert any("learns from 1,500 bytes" in note for note in done.notes)


def test_batches_change_nothing(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(files, tmp_path / "whole")
    monkeypatch.setattr(prepare, "BATCH_BYTES", 1)
    cut = make(files, tmp_path / "cut")
    assert cut.record == whole.record
    for path in whole.dataset.glob("*.bin"):
        assert path.read_bytes() == (cut.dataset / path.name).read_bytes()


def test_the_next_command_trains_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "novel.txt").write_text("\n\n".join(make_texts() * 3))
    assert dispatch(["data", "--text", "novel.txt", "--vocab-size", "320"]) == 0
    said = capsys.readouterr().out
    assert "cut at empty lines into 36 documents" in said
    (command,) = re.findall("^next: pargolf (.*)$", said, re.MULTILINE)
    tiny = "--model.n-layers 2 --model.d-model 16 --model.n-heads 2 --model.kv-heads 1 --model.q-rank 4"
    short = "--model.seq-len 32 --train.batch-tokens 256 --train.micro-batches 1 --train.iterations 2"
    quick = "--train.compile off --train.dtype float32 --eval.no-compressors --eval.stride 32"
    options = f"{tiny} {short} {quick} --export.code-form readable --name x".split()
    assert dispatch([*command.split(), *options]) == 0, capsys.readouterr()
    config = json.loads((tmp_path / "runs/x/config.json").read_text())
    assert config["data"]["dataset"] == "data/datasets/novel_sp320" and config["data"]["corpus"] == "none"
    assert config["model"]["vocab_size"] == 320
    capsys.readouterr()
    assert dispatch(["train", "demo", "--data", "novle_sp320"]) == 2
    assert (
        "there is no dataset novle_sp320 in data/datasets; did you mean novel_sp320?"
        in capsys.readouterr().err
    )
    (tmp_path / "novel").mkdir()  # text of that name lies beside
    assert dispatch(["config", "demo", "--data", "novel"]) == 0
    assert "novel_sp320" in capsys.readouterr().out
    absolute = str(tmp_path / "data/datasets/novel_sp320")
    assert dispatch(["config", "demo", "--data", absolute]) == 0
    assert absolute in capsys.readouterr().out


def test_an_interrupted_overwrite_leaves_the_old_dataset_whole(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(files, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(files, tmp_path, val_fraction=0.5, overwrite=True)
    first.record.check(first.dataset, Tokenizer(first.tokenizer))
    assert not make(files, tmp_path).made


def test_options_of_text_are_refused_without_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["data", "--name", "mine", "--val-bytes", "9"]) == 2
    assert "--name, --val-bytes: only with --text" in capsys.readouterr().err
