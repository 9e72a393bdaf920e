from pathlib import Path

import numpy as np
import pytest

from pargolf.data.batches import Batches
from pargolf.data.shards import TokenStream, write_shard
from pargolf.system.errors import UserError

SEQ = 8


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    path: Path = tmp_path_factory.mktemp("shards") / "fineweb_train_000000.bin"
    write_shard(path, np.arange(203))
    return TokenStream([path])


def test_stream_order_is_the_challenges_loader(stream: TokenStream) -> None:
    batches = Batches(stream, SEQ, batch_tokens=64, micro_batches=4, order="stream", seed=0)
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
    batches = Batches(stream, SEQ, batch_tokens=SEQ, micro_batches=1, order="shuffle", seed=3)
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


def test_shuffle_does_not_depend_on_what_was_read_before(stream: TokenStream) -> None:
    def make(seed: int) -> Batches:
        return Batches(stream, SEQ, batch_tokens=96, micro_batches=4, order="shuffle", seed=seed)

    one, other = make(1), make(1)
    forward = [one.micro_batch(step, index)[0] for step in range(6) for index in range(4)]
    backward = [other.micro_batch(step, index)[0] for step in range(5, -1, -1) for index in range(3, -1, -1)]
    assert all((a == b).all() for a, b in zip(forward, backward[::-1], strict=True))
    assert not (make(2).micro_batch(0, 0)[0] == forward[0]).all()


def test_micro_batches_only_cut_the_same_rows(stream: TokenStream) -> None:
    whole = Batches(stream, SEQ, 96, 1, "shuffle", 1).micro_batch(2, 0)[1]
    cut = Batches(stream, SEQ, 96, 4, "shuffle", 1)
    assert (np.concatenate([cut.micro_batch(2, index)[1] for index in range(4)]) == whole).all()


def test_rejects(stream: TokenStream) -> None:
    with pytest.raises(UserError, match="203 tokens, a row takes 204"):
        Batches(stream, 203, 203, 1, "shuffle", 0)
    assert Batches(stream, 202, 202, 1, "shuffle", 0).micro_batch(5, 0)[0].shape == (1, 202)
    with pytest.raises(UserError, match="not a multiple"):
        Batches(stream, SEQ, 60, 4, "stream", 0)
