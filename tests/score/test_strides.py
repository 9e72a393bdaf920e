"""The table of strides: those that fit, on the same tokens, scored as `eval` scores them."""

import pytest

from pargolf.config.schema import ModelConfig
from pargolf.data.dataset import open_validation
from pargolf.data.text import Text
from pargolf.data.tokenizer import Tokenizer
from pargolf.model.gpt import GPT
from pargolf.score.strides import SAMPLE_TOKENS, sample_strides
from pargolf.score.windows import score
from pargolf.system.errors import UserError
from support import Dataset, shaken


def subject(seq_len: int) -> GPT:
    """A model of random weights."""
    return shaken(ModelConfig(512, seq_len, n_layers=2, d_model=16, n_heads=2, kv_heads=1, q_rank=4)).eval()


def validation(dataset: Dataset) -> Text:
    return open_validation(dataset.folder, Tokenizer(dataset.tokenizer))


@pytest.mark.parametrize(
    ("seq_len", "strides"), [(48, [48]), (64, [64]), (200, [128, 64]), (256, [256, 128, 64])]
)
def test_strides_that_fit_are_scored_on_one_sample(
    seq_len: int, strides: list[int], dataset: Dataset
) -> None:
    model, text = subject(seq_len), validation(dataset)
    sample = sample_strides(model, text, batch_rows=8)
    assert sample.of_tokens == len(text) - 1 < SAMPLE_TOKENS
    assert [row.stride for row in sample.rows] == strides
    for row in sample.rows:
        assert row.score == score(model, text, row.stride, 8)
        assert row.seconds > 0


def test_a_longer_stream_is_sampled(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pargolf.score.strides.SAMPLE_TOKENS", 100)
    sample = sample_strides(subject(64), validation(dataset), batch_rows=8)
    assert [row.score.tokens for row in sample.rows] == [100]
    assert sample.of_tokens > 100


def test_no_rows_at_once_are_refused(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="batch_rows must be at least 1"):
        sample_strides(subject(64), validation(dataset), batch_rows=-1)
