"""tokenizer.json against SentencePiece: the same ids, and the text back."""

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pargolf.data.tokenizer import Tokenizer
from pargolf.huggingface.tokenizer import read_model, tokenizer_files
from pargolf.system.errors import UserError
from pargolf.system.files import write_json
from support import Dataset

WORDS = ["the", " quick", " fox ", "naïve", "Øystein", " haha", "hahaha", "aaaa", "\n", "\r\n", " ", "  ",
         "\t"]  # fmt: skip
ODD = ["\0", "\x7f", "\u2581", "\ufeff", "\u200d", "😀", "👩‍🔬", "e\u0301", "\u1112\u1161", "\ufffd", "----",
       "<s>", "</s>", "<unk>", "<0x41>"]  # fmt: skip
texts = st.lists(st.one_of(st.text(max_size=12), st.sampled_from(WORDS + ODD))).map("".join)
# What NFKC rewrites, but nothing that joins the character before it.
plain = st.characters(max_codepoint=0x2FF)
wide = st.sampled_from([*WORDS, "Ａ", "ﬁ", "½", "…", "　", "漢字", "😀", "ſ", "<s>"])
rewritten = st.lists(st.one_of(st.text(plain, max_size=12), wide)).map("".join)
BPE: dict[str, Any] = {"model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "minloglevel": 2}


def load(tokenizer: Tokenizer, folder: Path) -> Any:
    """As `pargolf export` writes it and transformers reads it."""
    write_json(folder / "config.json", {"model_type": "pargolf"})
    for name, content in tokenizer_files(tokenizer, 64).items():
        write_json(folder / name, content)
    return AutoTokenizer.from_pretrained(folder)


def trained(articles: list[str], path: Path, **options: Any) -> Tokenizer:
    model = io.BytesIO()
    lines = iter("\n".join(articles).split("\n"))
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **(BPE | options))
    path.write_bytes(model.getvalue())
    return Tokenizer(path)


@pytest.fixture(scope="module")
def tokenizer(dataset: Dataset) -> Tokenizer:
    return Tokenizer(dataset.tokenizer)


@pytest.fixture(scope="module")
def fast(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tokenizer, tmp_path_factory.mktemp("fast"))


@pytest.fixture(scope="module")
def challenge(articles: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """With the settings of the challenge's tokenizers: NFKC, spaces at the ends and in a row vanish."""
    path = tmp_path_factory.mktemp("challenge") / "challenge.model"
    return trained(
        articles, path, normalization_rule_name="nmt_nfkc", add_dummy_prefix=False, split_digits=True,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def challenge_fast(challenge: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(challenge, tmp_path_factory.mktemp("challenge-fast"))


@pytest.fixture(scope="module")
def prefixed(articles: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """With a space before every text, SentencePiece's default."""
    folder = tmp_path_factory.mktemp("prefixed")
    tokenizer = trained(articles, folder / "prefixed.model", normalization_rule_name="identity")
    return tokenizer, load(tokenizer, folder)


@settings(deadline=None)
@given(texts)
def test_ids_and_text_are_those_of_sentencepiece(tokenizer: Tokenizer, fast: Any, text: str) -> None:
    ids = fast(text)["input_ids"]
    assert ids == [tokenizer.bos_id, *tokenizer.encode(text)]
    assert fast(text, add_special_tokens=False)["input_ids"] == ids[1:]
    assert fast.decode(ids, skip_special_tokens=True) == text


@settings(deadline=None)
@given(rewritten)
def test_the_challenge_s_normalization_is_written_too(
    challenge: Tokenizer, challenge_fast: Any, text: str
) -> None:
    ids = challenge_fast(text)["input_ids"]
    assert ids == [challenge.bos_id, *challenge.encode(text)]
    assert challenge_fast.decode(ids, skip_special_tokens=True) == challenge.decode(ids)


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS)).map("".join))
def test_a_space_before_every_text_is_written_too(prefixed: tuple[Tokenizer, Any], text: str) -> None:
    tokenizer, fast = prefixed
    ids = fast(text)["input_ids"]
    assert ids == [tokenizer.bos_id, *tokenizer.encode(text)]
    assert fast.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


def test_a_whole_document_has_the_ids_of_the_shards(
    tokenizer: Tokenizer, fast: Any, articles: list[str]
) -> None:
    for article in articles:
        assert fast(article, add_special_tokens=False)["input_ids"] == tokenizer.encode(article)


def test_special_tokens_are_those_of_the_data(tokenizer: Tokenizer, fast: Any, challenge_fast: Any) -> None:
    assert (fast.bos_token_id, fast.eos_token_id, fast.unk_token_id) == (1, 1, 0)
    assert len(fast) == tokenizer.vocab_size
    assert (fast.pad_token_id, fast.pad_token) == (0, "<unk>")  # which no text has
    assert (challenge_fast.pad_token_id, challenge_fast.pad_token) == (0, "<pad>")
    assert fast(["a", "the fox"], padding=True)["attention_mask"][0][0] == 0
    assert fast("a", "b")["input_ids"] == [1, *tokenizer.encode("a"), 1, *tokenizer.encode("b")]
    assert set(fast("a")) == {"input_ids", "attention_mask"}
    assert fast.decode(fast("the fox")["input_ids"]) == "<s>the fox"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram", "hard_vocab_limit": False}, "no BPE tokenizer with byte fallback"),
        ({"byte_fallback": False, "vocab_size": 200}, "no BPE tokenizer with byte fallback"),
        ({"user_defined_symbols": ["<tool>"]}, r"USER_DEFINED pieces, such as \['<tool>'\]"),
    ],
)
def test_other_tokenizers_are_refused(
    articles: list[str], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tokenizer_files(trained(articles, tmp_path / "other.model", **options), 64)


def test_the_model_file_is_read_as_sentencepiece_reads_it(challenge: Tokenizer) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(challenge.path))
    model = read_model(challenge.path)
    assert [piece.text for piece in model.pieces] == [processor.id_to_piece(i) for i in range(400)]
    assert [piece.score for piece in model.pieces] == [processor.get_score(i) for i in range(400)]
    assert (model.strips_spaces, model.dummy_prefix) == (True, False)


def test_a_field_of_another_type_is_one_that_is_not_known(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As Protocol Buffers have it, and so SentencePiece: else a value of a wrong type would be used."""
    whole = tokenizer.path.read_bytes()
    size = whole[1]
    piece, rest = whole[2 : 2 + size], whole[2 + size :]
    number = b"\x08\x07"  # field 1 as a varint, where a piece has its text
    table = b"\x1a\x02\x10\x07"  # the normalizer's field 2 so, where it has its table
    (tmp_path / "odd.model").write_bytes(bytes([0x0A, size + 2]) + piece + number + rest + table)
    assert tokenizer_files(Tokenizer(tmp_path / "odd.model"), 64) == tokenizer_files(tokenizer, 64)


@pytest.mark.parametrize("data", [b"\x0b", b"\x0a", b"\x0a\x02\x1d\x00", b"\x0a\x00", b"\xff" * 20])
def test_a_damaged_model_is_one_clear_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "damaged.model").write_bytes(data)
    with pytest.raises(UserError, match="cannot read the SentencePiece model"):
        read_model(tmp_path / "damaged.model")
