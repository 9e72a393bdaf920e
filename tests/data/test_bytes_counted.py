"""Over SentencePiece models of every kind: bytes counted are those of the text, or the text is refused."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from pargolf.data.text import decoded, measured
from pargolf.data.tokenizer import SPACE, Tokenizer
from pargolf.system.errors import UserError

PROSE = "the quick brown fox jumps over a lazy dog while twelve naïve Øystein geese fly 1987 ﬁne １２ Ⅷ"
WORDS = PROSE.split()
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no dummy prefix": {"add_dummy_prefix": False},
    "as the challenge's": {
        "normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False,
    },
    "prefix, every space kept": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "NFKC, lower case": {"normalization_rule_name": "nmt_nfkc_cf"},
    "NFKC, spaces kept": {"normalization_rule_name": "nfkc", "remove_extra_whitespaces": False},
    "user's symbols": {"user_defined_symbols": ["<sep>", f"{SPACE}fox", f"quick{SPACE}brown", "漢字"]},
    "control symbols": {"control_symbols": ["<ctl>", "fox"]},
    "words joined": {"split_by_whitespace": False, "split_by_number": False},
    "spaces as pieces": {"allow_whitespace_only_pieces": True, "split_digits": True},
    "other ids": {"unk_id": 3, "bos_id": 0, "eos_id": 1, "pad_id": 2},
}  # fmt: skip
KINDS = [
    pytest.param(kind, fallback, name, id=f"{kind}, {'bytes' if fallback else 'no bytes'}, {name}")
    for kind in ("bpe", "unigram", "char")
    for fallback in (True, False)
    for name in OPTIONS
]


def train_model(kind: str, fallback: bool, options: dict[str, Any], path: Path) -> None:
    rng = random.Random(5)
    lines = [" ".join(rng.choices(WORDS, k=12)) for _ in range(200)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type=kind, byte_fallback=fallback,
        vocab_size=400 if fallback else 120, hard_vocab_limit=False, required_chars=SPACE, minloglevel=2,
        **options,
    )  # fmt: skip
    path.write_bytes(model.getvalue())


texts = st.lists(
    st.one_of(
        st.text(max_size=8), st.sampled_from([*WORDS, " ", " ", " ", "  ", "\n", "<sep>", "quick brown"])
    )
).map("".join)


@pytest.mark.parametrize(("kind", "fallback", "name"), KINDS)
def test_bytes_are_the_text_s_or_the_tokenizer_is_refused(
    kind: str, fallback: bool, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("model") / "t.model"
    train_model(kind, fallback, OPTIONS[name], path)
    tokenizer = Tokenizer(path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))

    @given(st.lists(texts, min_size=1, max_size=3))
    def hold(documents: list[str]) -> None:
        # SentencePiece takes a literal U+2581 for a space, and strips any run of them at the start.
        ids = [theirs.encode(document.replace(SPACE, "")) for document in documents]
        stream = np.array([token for part in ids for token in (theirs.bos_id(), *part)])
        text = "".join(theirs.decode(part) for part in ids)
        try:
            scored = measured(stream, tokenizer)
        except UserError:
            assert theirs.unk_id() in stream or not text  # nothing else is refused
            return
        assert theirs.unk_id() not in stream
        assert scored.bytes == len(text.encode())
        assert decoded(stream, tokenizer) == text.encode()

    hold()


@pytest.mark.parametrize("fallback", [True, False])
def test_a_vocabulary_of_words_has_no_piece_for_a_space(fallback: bool, tmp_path: Path) -> None:
    train_model("word", fallback, {}, tmp_path / "t.model")
    with pytest.raises(UserError, match="no piece for a space alone"):
        Tokenizer(tmp_path / "t.model")
