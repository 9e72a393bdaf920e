"""Text that is transformed before the tokenizer: nobody outside of the tokenizer sees it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pargolf
from pargolf.cli import dispatch
from pargolf.data import shards
from pargolf.data.caseops import ALLCAPS, CAPNEXT, ESC, NAMES, OPERATORS, TITLE
from pargolf.data.dataset import open_validation
from pargolf.data.files import text_files
from pargolf.data.prepare import PreparedData, prepare_files
from pargolf.data.record import read_record
from pargolf.data.shards import open_sidecar, open_split, write_shard
from pargolf.data.text import decoded, measured
from pargolf.data.tokenizer import FUSED, SPACE, Tokenizer, Transform, train_tokenizer
from pargolf.score.passages import passages, spans
from pargolf.system.errors import UserError
from tokenizer_support import train_model

TRANSFORMS: tuple[Transform, ...] = ("caseops", "caseops-fused")
SENTENCE = "The Old city of NASA and McDonald; I saw \ue001 an Émigré \ue004\ue004. THE END, 漢 ok."
DOCUMENTS = [f"{SENTENCE} Number {i} was The best.\n\u2581A line\n" * 12 for i in range(8)]

texts = st.lists(
    st.one_of(
        st.text(max_size=5),
        st.text(f"aZ bY é\n{SPACE}", max_size=6),
        st.sampled_from((*OPERATORS, " The", " NASA", " ")),
    )
).map("".join)


@pytest.fixture(scope="module", params=TRANSFORMS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    train_tokenizer(DOCUMENTS, 350, path, request.param)
    made = Tokenizer(path)
    assert made.transform == request.param
    return made


@given(text=texts)
def test_every_text_comes_back_and_its_bytes_add_up(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    written = tokenizer.texts_of(ids)
    assert b"".join(written) == text.encode()
    stream = np.array([tokenizer.bos_id, *ids])
    assert decoded(stream, tokenizer) == text.encode()
    if text:
        assert measured(stream, tokenizer).sizes[1:].tolist() == [len(part) for part in written]


@given(data=st.lists(st.one_of(texts.map(str.encode), st.binary(max_size=6))).map(b"".join))
def test_any_bytes_come_back(tokenizer: Tokenizer, data: bytes) -> None:
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


def test_a_vocabulary_has_the_published_ids(tokenizer: Tokenizer) -> None:
    fused = [f"{SPACE}<TITLE>", f"{SPACE}<ALLCAPS>"] if tokenizer.transform == "caseops-fused" else []
    pieces = [tokenizer.piece_of(token) for token in range(tokenizer.vocab_size)]
    operators = ["<TITLE>", "<ALLCAPS>", "<CAPNEXT>", "<ESC>"]
    assert pieces[:9] == ["<pad>", "<s>", "</s>", "<unk>", *operators, *fused, "<0x00>"][:9]
    assert not any("A" <= char <= "Z" for piece in pieces if "<" not in piece for char in piece)
    first = [tokenizer.piece_of(token) for token in tokenizer.encode(" The NASA")]
    assert first[:2] == ([f"{SPACE}<TITLE>", "the"] if fused else [SPACE, "<TITLE>"])


@pytest.mark.parametrize(
    ("pieces", "sizes"),
    [
        (["<s>", SPACE, TITLE, "the", ALLCAPS, "nasa", CAPNEXT, "e"], [0, 1, 0, 3, 0, 4, 0, 1]),
        (["<s>", ESC, TITLE, TITLE, "the"], [0, 0, 3, 0, 3]),
        (["<s>", ESC, ESC, TITLE, "the", ESC, ESC, ESC, TITLE], [0, 0, 3, 0, 3, 0, 3, 0, 3]),
        (["<s>", ESC, ESC, ESC, ESC, ALLCAPS, "nasa"], [0, 0, 3, 0, 3, 0, 4]),
    ],
)
def test_operators_stand_for_no_bytes_unless_they_are_escaped(
    tokenizer: Tokenizer, pieces: list[str], sizes: list[int]
) -> None:
    ids = {tokenizer.piece_of(token): token for token in range(tokenizer.vocab_size)}
    stream = np.array([ids[piece.translate(NAMES)] for piece in pieces])
    assert measured(stream, tokenizer).sizes.tolist() == sizes
    rows = np.stack([stream, np.roll(stream, 1)])
    counted = tokenizer.byte_table().count(rows[:, :-1], rows[:, 1:])
    assert counted[0].tolist() == sizes[1:]


def make(folder: Path, transform: Transform, **options: Any) -> PreparedData:
    source = folder / "mine.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in DOCUMENTS))
    settings: dict[str, Any] = {"vocab_size": 350, "val_fraction": 0.25} | options
    return prepare_files(text_files([source]), root=folder, transform=transform, **settings)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_dataset_has_its_sidecar_and_says_its_transform(
    transform: Transform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_TOKENS", 300)
    plain, done = make(tmp_path, "none"), make(tmp_path, transform)
    assert plain.dataset.name == "mine_sp350" and plain.record.transform == "none"
    assert done.dataset.name == f"mine_sp350_{transform}" and read_record(done.dataset) == done.record
    assert done.record.transform == transform and not make(tmp_path, transform).made
    assert done.record.splits["val"].bytes == plain.record.splits["val"].bytes
    sidecar, val = open_sidecar(done.dataset), open_split(done.dataset, "val")
    assert sidecar is not None and sidecar.sizes == val.sizes and len(val.sizes) > 1
    tokenizer = Tokenizer(done.tokenizer)
    text = open_validation(done.dataset, tokenizer)
    assert text.sizes.tolist() == sidecar.read(0, len(sidecar)).tolist()
    original = decoded(text.tokens, tokenizer)
    assert len(original) == text.bytes == done.record.splits["val"].bytes
    assert sum(document in original.decode() for document in DOCUMENTS) == 2


@pytest.mark.parametrize("symbols", [OPERATORS, OPERATORS + FUSED], ids=TRANSFORMS)
@pytest.mark.parametrize("prefix", [True, False])
def test_a_tokenizer_that_normalizes_is_measured_by_the_text_that_it_writes(
    symbols: tuple[str, ...], prefix: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As the published one, of NFKC."""
    path = tmp_path_factory.mktemp("nfkc") / "t.model"
    own = train_model(path, 380, user_defined_symbols=list(symbols), add_dummy_prefix=prefix)

    @given(st.lists(texts.map(lambda text: text.replace(SPACE, "™Ａe\u0301")), min_size=1, max_size=3))
    def hold(documents: list[str]) -> None:
        ids = [own.encode(document) for document in documents]
        stream = np.array([token for part in ids for token in (own.bos_id, *part)])
        text = "".join(own.decode(part) for part in ids).encode()
        assert decoded(stream, own) == text == b"".join(b"".join(own.texts_of(part)) for part in ids)
        if text:
            assert measured(stream, own).bytes == len(text)

    hold()


def test_fused_takes_fewer_tokens(tmp_path: Path) -> None:
    apart, fused = (make(tmp_path, transform).record.splits["val"].tokens for transform in TRANSFORMS)
    assert fused < apart


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    done = make(tmp_path, "caseops")
    tokenizer = Tokenizer(done.tokenizer)
    with pytest.raises(UserError, match="are of the transform caseops, not of caseops-fused"):
        make(tmp_path, "caseops-fused", name="given", tokenizer=done.tokenizer)
    assert make(tmp_path, "none", name="given", tokenizer=done.tokenizer).record.transform == "caseops"
    path = done.dataset / "dataset.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"transform": "caseops-fused"}))
    with pytest.raises(UserError, match=r"holds text of the transform caseops-fused, by its dataset\.json"):
        open_validation(done.dataset, tokenizer)
    path.write_text(json.dumps(record))
    sidecar = done.dataset / "fineweb_val_bytes_000000.bin"
    stream = open_sidecar(done.dataset)
    assert stream is not None
    sizes = stream.read(0, len(stream))
    write_shard(sidecar, np.where(np.arange(len(sizes)) == sizes.argmax(), 0, sizes))
    with pytest.raises(UserError, match=r"val bytes, but its dataset\.json says"):
        open_validation(done.dataset, tokenizer)
    sidecar.unlink()
    with pytest.raises(UserError, match=r"has no fineweb_val_bytes_\*\.bin"):
        open_validation(done.dataset, tokenizer)


def test_passages_show_the_original_text(tokenizer: Tokenizer) -> None:
    tokens = np.array([i for text in DOCUMENTS for i in (tokenizer.bos_id, *tokenizer.encode(text))])
    text, bits = measured(tokens, tokenizer), np.ones(len(tokens))
    for passage in passages(text, bits):
        shown = spans(passage, text, bits)
        assert "".join(span.text for span in shown) in "".join(DOCUMENTS)
        assert all(span.bytes == len(span.text.encode()) > 0 for span in shown)
        assert sum(span.bits for span in shown) == passage.bits


TINY = (
    "--model.n-layers 2 --model.d-model 16 --model.n-heads 2 --model.kv-heads 1 --model.q-rank 4"
    " --model.seq-len 32 --train.batch-tokens 256 --train.micro-batches 1 --train.iterations 2"
    " --train.compile off --train.dtype float32 --eval.stride 32 --export.code-form readable"
)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_run_is_scored_by_the_bytes_of_the_original_text(
    transform: Transform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in DOCUMENTS))
    (tmp_path / "val.txt").write_text(SENTENCE * 9)
    command = f"data --text text.jsonl --val val.txt --vocab-size 350 --transform {transform}"
    assert dispatch(command.split()) == 0
    next_command = f"next: pargolf run demo --data text_sp350_{transform}"
    assert next_command in capsys.readouterr().out
    assert dispatch([*next_command.split()[2:], *TINY.split(), "--name", "x"]) == 0, capsys.readouterr().err
    result = json.loads(Path("runs/x/result.json").read_text())
    assert result["artifact"]["sliding"]["bytes"] == len((SENTENCE * 9).encode())
    model = pargolf.load("runs/x")
    assert model.scored(SENTENCE, 32).bytes == len(SENTENCE.encode())
    assert model.generate("The NASA", tokens=8).startswith("The NASA")

    capsys.readouterr()
    assert dispatch(["verify", "runs/x", "--positions", "4"]) == 0, capsys.readouterr()
    assert dispatch(["sample", "runs/x", "The NASA", "--tokens", "8"]) == 0
    explaining = ["explain", "runs/x", "--text", "val.txt", "--stride", "32"]
    assert dispatch(explaining) == 0
    assert ("\n▁<TITLE>\t" in capsys.readouterr().out) == (transform == "caseops-fused")
    assert dispatch([*explaining, "--out", "page.html"]) == 0
    assert dispatch(["report", "runs/x", "--tokens", "500"]) == 0
    Path("any.bin").write_bytes(Path("runs/x/tokenizer.model").read_bytes()[:600])
    for file in ("any.bin", "val.txt"):
        assert dispatch(["compress", file, "--model", "runs/x", "--out", f"{file}.pgc"]) == 0
        assert dispatch(["decompress", f"{file}.pgc", "--model", "runs/x", "--out", "back"]) == 0
        assert Path("back").read_bytes() == Path(file).read_bytes()
    pages = Path("page.html").read_text() + Path("runs/x/report.html").read_text()
    assert re.search("> ?NASA<", pages) and not set(OPERATORS) & set(pages + capsys.readouterr().out)
