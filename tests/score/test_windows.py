"""The score: every token once, the right bytes, and the same numbers as a naive loop."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pargolf.config.schema import ModelConfig
from pargolf.data.dataset import open_validation
from pargolf.data.split import choose_validation, survey
from pargolf.data.text import Text, decoded
from pargolf.data.tokenizer import Tokenizer
from pargolf.model.gpt import GPT
from pargolf.score.windows import document_windows, score, score_windows, window_losses, windows
from support import Dataset, shaken

TINY = ModelConfig(vocab_size=32, seq_len=16, n_layers=3, d_model=16, n_heads=2, kv_heads=1, q_rank=4)


def one_byte_each(tokens: np.ndarray) -> Text:
    """A text of no tokenizer."""
    return Text(tokens, np.minimum(np.arange(len(tokens)), 1), None)  # type: ignore[arg-type]


@given(targets=st.integers(1, 400), seq_len=st.integers(1, 70), stride=st.integers(1, 70))
def test_every_target_is_scored_once_with_enough_context(targets: int, seq_len: int, stride: int) -> None:
    stride = min(stride, seq_len)
    seen = np.zeros(targets, int)
    for index, window in enumerate(windows(targets, seq_len, stride)):
        assert window.start == index * stride
        assert window.length <= seq_len
        seen[window.start + window.first : window.start + window.length] += 1
        if index:
            assert window.first >= seq_len - stride
    assert (seen == 1).all()


def naive_sliding(model: GPT, tokens: np.ndarray, stride: int) -> float:
    """Mean loss with a pass of its own for each target, given the window that the rule assigns to it."""
    nats = []
    for target in range(1, len(tokens)):
        index = target - 1  # position of the input before it
        window = max(0, -(-(index + 1 - TINY.seq_len) // stride)) * stride
        context = torch.from_numpy(tokens[window : index + 1].astype(np.int64))[None]
        with torch.no_grad():
            logits = model.head(model.trunk(context))[0, -1]
        nats.append(-logits.double().log_softmax(-1)[tokens[target]].item())
    return sum(nats) / len(nats)


@pytest.mark.parametrize("stride", [1, 4, 5, 16])
@pytest.mark.parametrize("length", [2, 10, 17, 33, 50])
def test_score_is_the_naive_loop(stride: int, length: int) -> None:
    model = shaken(TINY)
    tokens = np.random.default_rng(0).integers(0, 32, length).astype(np.uint16)
    result = score(model, one_byte_each(tokens), stride, batch_rows=3)
    assert result.tokens == result.bytes == length - 1
    assert result.val_loss == pytest.approx(naive_sliding(model, tokens, stride), rel=1e-5)
    assert result.val_bpb == pytest.approx(result.val_loss / math.log(2))


def plain_loop(model: GPT, tokens: np.ndarray, stride: int) -> float:
    """Sum of nats, window by window, with every layer at every position."""
    nats = 0.0
    for window in windows(len(tokens) - 1, model.config.seq_len, stride):
        span = tokens[window.start : window.start + window.length + 1].astype(np.int64)
        row = torch.from_numpy(span)[None]
        with torch.no_grad():
            losses = model.loss(model.trunk(row[:, :-1]), row[:, 1:], reduction="none")
        nats += losses[:, window.first :].double().sum().item()
    return nats


@settings(deadline=None, max_examples=60)
@given(
    n_layers=st.integers(2, 5), heads=st.sampled_from([(1, 1), (4, 2), (4, 4)]),
    q_rank=st.sampled_from([0, 5]), seq_len=st.integers(1, 24), stride=st.integers(1, 24),
    length=st.integers(2, 90), rows=st.integers(1, 5),
    option=st.sampled_from([
        {}, {"k_rank": 2}, {"rotation_rank": 3}, {"depth_attention": "softmax"}, {"depth_attention": "signed"}
    ]),
)  # fmt: skip
def test_score_is_the_plain_loop_over_windows(
    n_layers: int,
    heads: tuple[int, int],
    q_rank: int,
    seq_len: int,
    stride: int,
    length: int,
    rows: int,
    option: dict[str, Any],
) -> None:
    c = ModelConfig(
        vocab_size=32, seq_len=seq_len, n_layers=n_layers, d_model=16, n_heads=heads[0], kv_heads=heads[1],
        q_rank=q_rank, **option,
    )  # fmt: skip
    model, stride = shaken(c), min(stride, seq_len)
    tokens = np.random.default_rng(length).integers(0, 32, length).astype(np.uint16)
    result = score(model, one_byte_each(tokens), stride, rows)
    assert result.val_loss * result.tokens == pytest.approx(plain_loop(model, tokens, stride), rel=1e-6)


def test_batching_changes_nothing() -> None:
    model = shaken(TINY)
    tokens = np.random.default_rng(1).integers(0, 32, 200).astype(np.uint16)
    results = [score(model, one_byte_each(tokens), 4, rows).val_loss for rows in (1, 7, 100)]
    assert results == pytest.approx([results[0]] * 3, rel=1e-6)


def test_scored_bytes_are_the_text_s(dataset: Dataset) -> None:
    stream = open_validation(dataset.folder, Tokenizer(dataset.tokenizer))
    c = ModelConfig(vocab_size=512, seq_len=64, n_layers=2, d_model=16, n_heads=2, kv_heads=1, q_rank=0)
    text = decoded(stream.tokens, stream.tokenizer)
    held_out = choose_validation(survey(dataset.documents), 0.1)
    assert text.decode() == "".join(x for x, out in zip(dataset.documents, held_out, strict=True) if out)
    for stride in (64, 24):
        result = score(GPT(c, seed=0), stream, stride, 32)
        assert result.tokens == len(stream) - 1
        assert result.bytes == len(text)


def test_documents_apart_are_the_naive_loop() -> None:
    model = shaken(TINY)
    tokens = np.random.default_rng(2).integers(2, 32, 150).astype(np.uint16)
    tokens[[0, 3, 4, 30, 90, 149]] = 1  # BOS; two follow one another, and one ends the stream
    edges = np.append(np.flatnonzero(tokens == 1)[:-1], 149).tolist()
    text = replace(one_byte_each(tokens), tokenizer=SimpleNamespace(bos_id=1))  # type: ignore[arg-type]
    for stride, rows in ((4, 3), (16, 1)):
        result = score_windows(model, text, document_windows(text, 16, stride), rows)
        nats = sum(
            naive_sliding(model, tokens[start : stop + 1], stride) * (stop - start)
            for start, stop in pairwise(edges)
        )
        assert result.tokens == len(tokens) - 1
        assert result.val_loss * result.tokens == pytest.approx(nats, rel=1e-6)
    other = tokens.copy()
    other[:30] = np.where(tokens[:30] == 1, 1, 7)
    bits = [
        {w: losses for w, losses in window_losses(model, t, document_windows(text, 16, 4), 3)}
        for t in (tokens, other)
    ]
    for window, losses in bits[0].items():  # nothing of another document is seen
        if window.start >= 30:
            assert losses == pytest.approx(bits[1][window], abs=1e-6)
