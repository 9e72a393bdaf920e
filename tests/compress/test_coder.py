import constriction
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pargolf.compress.coder import PRECISION, Counts, Decoder, Encoder, bits, counts
from pargolf.system.errors import UserError

ONE = 1 << PRECISION


def random_logits(seed: int, rows: int, vocab: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 30 * torch.tanh(torch.randn(rows, vocab, generator=generator) * spread / 30)


tables = st.builds(
    random_logits,
    st.integers(0, 2**31),
    st.integers(1, 6),
    st.sampled_from([2, 3, 300, 2048]),
    st.sampled_from([0.0, 1.0, 5.0, 1000.0]),
)


@given(tables)
def test_counts_are_whole_and_fill_the_range_exactly(logits: torch.Tensor) -> None:
    table = counts(logits).astype(np.float64)
    vocab = logits.size(1)
    assert (table == np.floor(table)).all() and (table >= 0).all()
    assert (table.sum(1) == ONE - vocab).all()
    exact = logits.double().softmax(-1).numpy()
    assert np.abs((table + 1) / ONE - exact).max() < (vocab + 4) / ONE


@pytest.mark.parametrize("vocab", [2, 300, 65_536])
def test_constriction_takes_the_counts_as_they_are(vocab: int) -> None:
    table = counts(random_logits(1, 1, vocab, 5.0))
    below = np.concatenate([[0], np.cumsum(table[0].astype(np.int64) + 1)])
    for symbol in {0, 1, vocab // 2, vocab - 2, vocab - 1}:
        encoder = constriction.stream.queue.RangeEncoder()
        family = constriction.stream.model.Categorical(perfect=False)
        encoder.encode(np.array([symbol], np.int32), family, table)
        # The first symbol cuts the range 2^64 - 1, shifted by the precision, at its interval's ends.
        _, (lower, width) = encoder.pos()
        unit = (2**64 - 1) >> PRECISION
        assert (lower, width) == (unit * int(below[symbol]), unit * int(below[symbol + 1] - below[symbol]))


@given(st.lists(tables, max_size=4))
def test_tokens_come_back_and_take_their_information(batches: list[torch.Tensor]) -> None:
    written: list[tuple[Counts, np.ndarray]] = []
    encoder = Encoder()
    for logits in batches:
        table = counts(logits)
        # The least probable tokens as well, which a draw would never give.
        symbols = np.array([(i * 7919) % logits.size(1) for i in range(len(table))])
        encoder.write(table, symbols)
        written.append((table, symbols))
    payload = encoder.finish()
    assert abs(8 * len(payload) - sum(bits(*pair) for pair in written)) <= 64
    decoder = Decoder(payload)
    for table, symbols in written:
        assert (decoder.read(table) == symbols).all()


def test_bits_are_those_of_the_probabilities() -> None:
    table = counts(torch.tensor([[0.0, 0.0], [30.0, -30.0]]))
    assert bits(table, np.array([0, 0])) == pytest.approx(1, abs=1e-6)
    assert bits(table, np.array([1, 1])) == pytest.approx(1 + PRECISION, abs=1e-6)


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        counts(torch.tensor([[0.0, float("nan")]]))


def test_more_tokens_than_were_written_are_refused() -> None:
    table = counts(torch.zeros(8, 256))
    encoder = Encoder()
    encoder.write(table, np.arange(8))
    decoder = Decoder(encoder.finish())
    decoder.read(table)
    with pytest.raises(UserError, match="more tokens than"):
        for _ in range(10):
            decoder.read(table)
    with pytest.raises(UserError, match="whole words"):
        Decoder(b"abc")
    with pytest.raises(UserError, match="make no sense"):
        Decoder(b"\xff" * 12).read(table)
