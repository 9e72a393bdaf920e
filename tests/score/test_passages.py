"""Bits of single tokens: they are the score's, and passages and spans cut the text without loss."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pargolf.config.schema import ModelConfig
from pargolf.data.shards import open_split
from pargolf.data.text import Text, measured
from pargolf.data.tokenizer import Tokenizer
from pargolf.score.passages import (
    PASSAGE_BYTES,
    Passage,
    by_position,
    passages,
    spans,
    token_bits,
)
from pargolf.score.windows import score
from support import Dataset, shaken

SMALL = ModelConfig(vocab_size=512, seq_len=32, n_layers=2, d_model=16, n_heads=2, kv_heads=1, q_rank=4)


@pytest.fixture(scope="module")
def tokenizer(dataset: Dataset) -> Tokenizer:
    return Tokenizer(dataset.tokenizer)


@pytest.mark.parametrize("stride", [32, 7])
def test_token_bits_sum_to_the_score(dataset: Dataset, tokenizer: Tokenizer, stride: int) -> None:
    model = shaken(SMALL)
    tokens = open_split(dataset.folder, "val").read(0, 500)
    calls: list[tuple[float, float]] = []
    bits = token_bits(model, tokens, stride, 8, lambda done, total: calls.append((done, total)))
    text = measured(tokens, tokenizer)
    sizes = text.sizes
    expected = score(model, text, stride, 8)
    assert bits.shape == sizes.shape == (500,)
    assert bits[0] == sizes[0] == 0 and (bits[1:] > 0).all()
    assert sizes.sum() == expected.bytes
    assert bits.sum() / sizes.sum() == pytest.approx(expected.val_bpb, rel=1e-12)
    assert calls[-1][0] == calls[-1][1]


def test_bits_by_position_are_those_of_the_rows() -> None:
    tokens = np.random.default_rng(0).integers(0, 512, 75).astype(np.uint16)
    bits = token_bits(shaken(SMALL), tokens, 32, 8)
    by_bits, by_bytes = by_position(bits, np.arange(75), 32)
    # Two whole rows and one of ten targets: the first position comes three times, the last twice.
    assert by_bits.shape == by_bytes.shape == (32,)
    assert by_bits[0] == pytest.approx(bits[1] + bits[33] + bits[65])
    assert by_bits[31] == pytest.approx(bits[32] + bits[64])
    assert by_bytes[9] == 10 + 42 + 74


def cut(tokenizer: Tokenizer, documents: list[str]) -> tuple[Text, np.ndarray, list[Passage]]:
    """Documents as a text, random bits for its tokens, and the passages."""
    parts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in documents]
    tokens = np.array([token for part in parts for token in part], np.uint16)
    text = measured(tokens, tokenizer)
    bits = np.random.default_rng(0).random(len(tokens))
    return text, bits, passages(text, bits)


words = st.text(st.sampled_from("aé漢🙂 .!\n"), min_size=1, max_size=12)


@given(documents=st.lists(st.lists(words, max_size=150).map("".join), min_size=1, max_size=4).filter(any))
@settings(max_examples=60, deadline=None)
def test_passages_cover_the_text_once(tokenizer: Tokenizer, documents: list[str]) -> None:
    stream, bits, found = cut(tokenizer, documents)
    tokens, sizes = stream.tokens, stream.sizes
    covered = np.zeros(len(tokens), int)
    for passage in found:
        covered[passage.start : passage.stop] += 1
        part = tokens[passage.start : passage.stop]
        assert tokenizer.bos_id not in part
        text = tokenizer.decode(part)
        assert "\N{REPLACEMENT CHARACTER}" not in text
        assert passage.bytes == len(text.encode()) == sizes[passage.start : passage.stop].sum()
        assert PASSAGE_BYTES // 2 <= passage.bytes < 2 * PASSAGE_BYTES + 40
        assert passage.bits == pytest.approx(bits[passage.start : passage.stop].sum())
        shown = spans(passage, stream, bits)
        assert "".join(span.text for span in shown) == text
        assert sum(span.bytes for span in shown) == passage.bytes
        assert all(span.bytes == len(span.text.encode()) for span in shown)
        assert sum(span.bits for span in shown) == pytest.approx(passage.bits)
    assert covered.max(initial=0) <= 1
    # What is left out: BOS, and at most half a passage a document.
    left = np.where(covered, 0, sizes).sum()
    assert left < len(documents) * PASSAGE_BYTES // 2 + 1


def test_passages_end_with_sentences_and_lines(tokenizer: Tokenizer) -> None:
    sentence = "It was so, and 3.14 is no end of one. "
    line = "a line of its own without a full stop\n\n"
    stream, _, found = cut(tokenizer, [sentence * 30, line * 30])
    texts = [tokenizer.decode(stream.tokens[p.start : p.stop]) for p in found]
    assert len(texts) > 4
    assert all(text.endswith((" of one.", "stop\n\n", "one. ")) for text in texts)
    assert not any(text.startswith("\n") for text in texts)
