from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pargolf.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from pargolf.data.batches import Batches, coprime_rows, document_rows
from pargolf.data.shards import TokenStream, write_shard
from pargolf.system.errors import UserError

SEQ = 8


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    path: Path = tmp_path_factory.mktemp("shards") / "fineweb_train_000000.bin"
    write_shard(path, np.arange(203))
    return TokenStream([path])


def batches_of(
    stream: TokenStream, order: Any, tokens: int, pieces: int = 1, seed: int = 0, seq_len: int = SEQ
) -> Batches:
    train = TrainConfig(batch_tokens=tokens, micro_batches=pieces, seed=seed)
    return Batches(stream, RunConfig(ModelConfig(seq_len=seq_len), DataConfig(order=order), train))


def test_stream_order_is_the_challenges_loader(stream: TokenStream) -> None:
    batches = batches_of(stream, "stream", 64, pieces=4)
    position = 0
    for step in range(5):
        for index in range(4):
            x, y = batches.micro_batch(step, index)
            span = np.arange(position, position + 17) % 203
            assert x.dtype == y.dtype == np.int64 and x.shape == y.shape == (2, SEQ)
            assert x.ravel().tolist() == span[:-1].tolist()
            assert y.ravel().tolist() == span[1:].tolist()
            position += 17


def test_shuffle_makes_every_token_a_target_once_an_epoch(stream: TokenStream) -> None:
    batches = batches_of(stream, "shuffle", SEQ, seed=3)
    epochs = []
    for epoch in range(3):
        targets = []
        for step in range(epoch * 25, epoch * 25 + 25):  # 203 // 8 rows
            x, y = batches.micro_batch(step, 0)
            assert ((x + 1) % 203 == y).all()
            targets += y.ravel().tolist()
        assert len(set(targets)) == len(targets) == 200
        epochs.append(targets)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len({tuple(sorted(set(range(203)) - set(targets))) for targets in epochs}) > 1  # the offset moves


@pytest.mark.parametrize("order", ["shuffle", "coprime", "documents"])
def test_a_step_does_not_depend_on_what_was_read_before(stream: TokenStream, order: str) -> None:
    one, other = (batches_of(stream, order, 96, pieces=4, seed=1) for _ in range(2))
    forward = [one.micro_batch(step, index)[0] for step in range(6) for index in range(4)]
    backward = [other.micro_batch(step, index)[0] for step in range(5, -1, -1) for index in range(3, -1, -1)]
    assert all((a == b).all() for a, b in zip(forward, backward[::-1], strict=True))
    another = batches_of(stream, order, 96, pieces=4, seed=2)
    assert not (another.micro_batch(0, 0)[0] == forward[0]).all()


def test_micro_batches_only_cut_the_same_rows(stream: TokenStream) -> None:
    whole = batches_of(stream, "shuffle", 96, seed=1).micro_batch(2, 0)[1]
    cut = batches_of(stream, "shuffle", 96, pieces=4, seed=1)
    assert (np.concatenate([cut.micro_batch(2, index)[1] for index in range(4)]) == whole).all()


@given(st.lists(st.integers(2 * SEQ, 400), min_size=1, max_size=5), st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_coprime_rows_are_each_block_of_each_shard_once_and_all_shards_in_turn(
    sizes: list[int], seed: int
) -> None:
    rows = coprime_rows(sizes, SEQ, np.random.default_rng(seed))
    ends = np.cumsum(sizes)
    shard = np.searchsorted(ends, rows, side="right")
    for index, size in enumerate(sizes):
        mine = rows[shard == index]
        assert len(mine) == len(set(mine)) >= size // SEQ - 1
        assert mine.min() >= ends[index] - size and (size < 3 * SEQ or mine.max() + SEQ < ends[index])
        assert len(set(mine % SEQ)) == 1
        jumps = {int(jump) % (size // SEQ - 1) for jump in np.diff(mine) // SEQ}
        assert len(jumps) <= 1  # one stride, modulo the blocks
    if len(sizes) == 2 and min(sizes) == max(sizes):
        assert Counter(shard[: len(rows) // 2])[0] in (len(rows) // 4, -(-len(rows) // 4))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=5), st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_coprime_rows_of_the_smallest_shards_begin_in_the_stream(sizes: list[int], seed: int) -> None:
    rows = coprime_rows(sizes, SEQ, np.random.default_rng(seed))
    assert len(rows) == sum(max(1, size // SEQ - 1) for size in sizes)  # as many as an epoch counts on
    assert rows.min() >= 0 and rows.max() < sum(sizes) + SEQ  # the last may begin anew, as the stream does


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 9))
@settings(deadline=None, max_examples=200)
def test_document_rows_begin_with_a_document_or_a_whole_row_after_one(sizes: list[int], before: int) -> None:
    begins = before + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    end = before + sum(sizes)
    rows = document_rows(begins, end, SEQ)
    documents = sorted({0, *begins.tolist()})
    held = set()
    for row in rows:
        document = max(begin for begin in documents if begin <= row)
        assert (row - document) % SEQ == 0
        held |= set(range(row, row + SEQ))
    assert held >= set(range(end))
    for begin, stop in zip(documents, [*documents[1:], end], strict=True):
        if stop - begin <= SEQ:  # a short one is whole in a row
            assert any(row <= begin and stop <= row + SEQ for row in rows)


def test_rows_of_documents_are_dealt_out_from_the_shards(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(2, 60, size=500)
    tokens[np.r_[0, 30, 33, 120, 490]] = 1
    write_shard(tmp_path / "fineweb_train_000000.bin", tokens[:200])
    write_shard(tmp_path / "fineweb_train_000001.bin", tokens[200:])
    stream = TokenStream(list(tmp_path.glob("*.bin")))
    expected = document_rows(np.flatnonzero(tokens == 1), 500, SEQ)
    batches = batches_of(stream, "documents", len(expected) * SEQ)
    for step in range(2):
        x, y = batches.micro_batch(step, 0)
        assert (x[:, 1:] == y[:, :-1]).all()
        wanted = [tokens[(start + np.arange(SEQ)) % 500].tolist() for start in expected]
        assert sorted(x.tolist()) == sorted(wanted)


def test_rejects(stream: TokenStream) -> None:
    with pytest.raises(UserError, match="203 tokens, a row takes 204"):
        batches_of(stream, "shuffle", 203, seq_len=203)
    assert batches_of(stream, "shuffle", 202, seq_len=202).micro_batch(5, 0)[0].shape == (1, 202)
    with pytest.raises(UserError, match="not a multiple"):
        batches_of(stream, "stream", 60, pieces=4)
