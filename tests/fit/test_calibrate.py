"""Moments against gradients that autograd gives for whole weights; rows that have no text in common."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pargolf.config.schema import ModelConfig
from pargolf.data.shards import open_split, write_shard
from pargolf.data.text import measured
from pargolf.data.tokenizer import Tokenizer
from pargolf.fit.calibrate import bits_per_byte, calibrate, spread_rows
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.score.windows import score
from pargolf.system.errors import UserError
from support import Dataset, shaken

SMALL = ModelConfig(
    vocab_size=40, seq_len=8, n_layers=4, d_model=16, n_heads=4, kv_heads=2, q_rank=5, rotation_rank=2
)


def test_one_token_s_gradient_is_the_product_of_its_moments() -> None:
    """For a single token d loss / d W is g x^T, whose squares are those of `outputs` and `inputs`."""
    model = shaken(SMALL)
    moments = calibrate(model, np.array([[7, 9]]))
    model.requires_grad_(True)
    model.zero_grad()
    model(torch.tensor([[7]]), torch.tensor([[9]])).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert moments.keys() == {name for name, slot in tensor_kinds(model).items() if slot.kind != "vector"}
    for name, m in moments.items():
        gradient = gradients[name]
        assert gradient is not None
        if name != "embed.weight":
            product = torch.outer(m.outputs, m.inputs.diagonal())
            torch.testing.assert_close(product, gradient.square(), rtol=1e-4, atol=1e-10)
            continue
        # Each row of the embedding but the one that was read has the head's gradient alone.
        others = torch.arange(40) != 7
        sums = m.outputs * m.inputs.trace()
        torch.testing.assert_close(sums[others], gradient.square().sum(1)[others], rtol=1e-4, atol=1e-10)
        assert sums[7] > sums[others].max()


def test_moments_are_means_over_tokens_and_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 40, (6, 9))
    whole = calibrate(shaken(SMALL), rows)
    monkeypatch.setattr("pargolf.fit.calibrate.BATCH_TOKENS", 18)
    parts = calibrate(shaken(SMALL), rows)
    for name, m in whole.items():
        torch.testing.assert_close(m.inputs, parts[name].inputs, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(m.outputs, parts[name].outputs, rtol=1e-4, atol=1e-10)
    # What comes in after a norm has a mean square of 1.
    assert whole["blocks.1.mlp.fc.weight"].inputs.trace() == pytest.approx(16, rel=1e-3)


@pytest.mark.parametrize(("length", "count"), [(1000, 5), (81, 5), (17, 1)])
def test_rows_to_calibrate_and_to_measure_are_disjoint(length: int, count: int, tmp_path: Path) -> None:
    write_shard(tmp_path / "fineweb_train_000000.bin", np.arange(length))
    rows, held_back = spread_rows(open_split(tmp_path, "train"), 8, 40)
    assert rows.shape == held_back.shape == (count, 9)
    targets = np.concatenate((rows, held_back))[:, 1:].flatten().tolist()
    assert len(set(targets)) == len(targets) == 16 * count
    with pytest.raises(UserError, match=f"has {length} tokens"):
        spread_rows(open_split(tmp_path, "train"), length, 40)


def test_bits_per_byte_are_those_of_the_score(dataset: Dataset) -> None:
    model = GPT(ModelConfig(512, 64, 3, 32, 4, 2, 8), seed=0)
    tokenizer = Tokenizer(dataset.tokenizer)
    tokens = open_split(dataset.folder, "train").read(0, 65)
    alone = score(model, measured(tokens, tokenizer), 64, 1)
    rows = tokens.astype(np.int64)[None]
    assert bits_per_byte(model, rows, tokenizer.byte_table()) == pytest.approx(alone.val_bpb)
