import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pargolf.compress.contexts import Layout, Tokens, cache_bytes, walk
from pargolf.config.schema import ModelConfig
from pargolf.model.attention import KVCache
from support import shaken

CONFIG = ModelConfig(vocab_size=40, seq_len=8, n_layers=3, d_model=16, n_heads=4, kv_heads=2, q_rank=5)
BOS = 1


@given(st.integers(0, 200), st.integers(1, 20))
def test_streams_are_cut_as_numpy_cuts(tokens: int, streams: int) -> None:
    layout = Layout(tokens, streams, 4)
    stream = np.arange(100, 100 + tokens)
    columns = layout.columns(stream)
    parts = np.array_split(stream, streams)
    assert len(columns) == layout.steps == len(parts[0])
    for step, column in enumerate(columns):
        assert column.tolist() == [part[step] for part in parts if step < len(part)]
        assert len(column) == layout.active(step)
    assert (layout.joined(columns) == stream).all()


def contexts(stream: list[int], seq_len: int, keep: int) -> list[list[int]]:
    """What each token of a stream is predicted from, by the rule in words: full, it shrinks to `keep`."""
    context, found = [BOS], []
    for token in stream:
        found.append(list(context))
        context.append(token)
        if len(context) > seq_len:
            context = context[-keep:]
    return found


@pytest.mark.parametrize("keep", [1, 4, 7, 8])
@pytest.mark.parametrize(("tokens", "streams"), [(1, 1), (8, 1), (9, 1), (50, 2), (53, 3), (2, 5)])
def test_logits_are_those_of_a_plain_forward_over_the_context(tokens: int, streams: int, keep: int) -> None:
    model, layout = shaken(CONFIG), Layout(tokens, streams, keep)
    stream = np.random.default_rng(3).integers(2, 40, tokens)
    columns, seen = iter(layout.columns(stream)), []

    def known(logits: Tensor) -> Tokens:
        seen.append(logits)
        return next(columns)

    walked = walk(model, BOS, layout, known)
    assert (layout.joined(walked) == stream).all()
    for row, part in enumerate(np.array_split(stream, streams)):
        for step, context in enumerate(contexts(part.tolist(), CONFIG.seq_len, keep)):
            with torch.inference_mode():
                plain = model.head(model.trunk(torch.tensor([context]))[0, -1])
            assert torch.allclose(seen[step][row], plain, atol=1e-4)


def test_the_same_tokens_give_the_same_floats_whether_known_or_answered() -> None:
    model, layout = shaken(CONFIG), Layout(75, 7, 4)
    answered: list[Tensor] = []

    def likeliest(logits: Tensor) -> Tokens:
        answered.append(logits)
        return logits.argmax(-1).numpy()

    columns = iter(walk(model, BOS, layout, likeliest))
    floats = iter(answered)

    def known(logits: Tensor) -> Tokens:
        assert torch.equal(logits, next(floats))
        return next(columns)

    walk(model, BOS, layout, known)
    assert next(columns, None) is None


def test_cache_bytes_are_those_of_the_cache() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert 3 * cache_bytes(CONFIG, dtype) == KVCache(CONFIG, 3, dtype).store.nbytes


def test_what_learns_gets_each_full_context_before_it_goes_on() -> None:
    model, layout = shaken(CONFIG), Layout(50, 2, 4)
    parts = np.array_split(np.random.default_rng(3).integers(2, 40, 50), 2)
    columns, seen, learnt = iter(layout.columns(np.concatenate(parts))), [], []

    def known(logits: Tensor) -> Tokens:
        seen.append(logits)
        return next(columns)

    def learn(rows: Tensor) -> None:
        learnt.append((len(seen), rows))
        model.embed.weight.mul_(0)  # then every token is as likely as every other

    walk(model, BOS, layout, known, learn=learn)
    assert [steps for steps, _ in learnt] == [8, 13, 18, 23]
    for steps, rows in learnt:
        assert rows.tolist() == [part[steps - 8 : steps].tolist() for part in parts]
    assert all(logits.std() > 0 for logits in seen[:8])
    assert all(logits.std() == 0 for logits in seen[8:])
