"""The table of strides: those that fit, on the same tokens, scored as `eval` scores them."""

from pathlib import Path

import pytest

from pargolf.config.schema import ExportConfig, ModelConfig
from pargolf.data.shards import open_split
from pargolf.data.tokenizer import Tokenizer
from pargolf.export.artifact import pack
from pargolf.model.gpt import tensor_kinds
from pargolf.run.target import Target, load_model, open_artifact
from pargolf.score.strides import SAMPLE_TOKENS, sample_strides
from pargolf.score.windows import score
from pargolf.system.errors import UserError
from support import Dataset, shaken


def target(seq_len: int, dataset: Dataset, folder: Path) -> Target:
    """An artifact of random weights outside any run folder."""
    c = ModelConfig(vocab_size=512, seq_len=seq_len, n_layers=2, d_model=16, n_heads=2, kv_heads=1, q_rank=4)
    model, path = shaken(c), folder / "model.pgz"
    sha = Tokenizer(dataset.tokenizer).sha256
    path.write_bytes(pack(dict(model.state_dict()), tensor_kinds(model), c, ExportConfig(level=3), sha))
    return Target(path, dataset.tokenizer, dataset.folder, None, None)


@pytest.mark.parametrize(
    ("seq_len", "strides"), [(48, [48]), (64, [64]), (200, [128, 64]), (256, [256, 128, 64])]
)
def test_strides_that_fit_are_scored_on_one_sample(
    seq_len: int, strides: list[int], dataset: Dataset, tmp_path: Path
) -> None:
    where = target(seq_len, dataset, tmp_path)
    sample = sample_strides(where, batch_rows=8)
    stream = open_split(dataset.folder, "val")
    assert sample.of_tokens == len(stream) - 1 < SAMPLE_TOKENS
    assert [row.stride for row in sample.rows] == strides
    artifact, tokenizer = open_artifact(where)
    tokens = stream.read(0, len(stream))
    for row in sample.rows:
        whole = score(load_model(artifact), tokens, tokenizer.byte_table(), row.stride, 8)
        assert row.score == whole
        assert row.seconds > 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.pgz"]


def test_a_longer_stream_is_sampled(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pargolf.score.strides.SAMPLE_TOKENS", 100)
    sample = sample_strides(target(64, dataset, tmp_path), batch_rows=8)
    assert [row.score.tokens for row in sample.rows] == [100]
    assert sample.of_tokens > 100


def test_no_rows_at_once_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_rows must be at least 1"):
        sample_strides(target(64, dataset, tmp_path), batch_rows=-1)
