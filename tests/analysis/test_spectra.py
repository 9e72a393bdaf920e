"""Singular values and effective ranks, against numpy, scipy and matrices whose spectrum is known."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pargolf.analysis.spectra import (
    condition,
    entropy_rank,
    model_spectra,
    product_singular_values,
    rank_for_loss,
)
from pargolf.config.schema import ModelConfig
from pargolf.model.layers import LowRank
from support import shaken

TINY = ModelConfig(vocab_size=40, seq_len=8, n_layers=3, d_model=16, n_heads=4, kv_heads=2, q_rank=5)
sizes = st.integers(1, 12)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(seed: int, rows: int, cols: int) -> Tensor:
    """rows x cols with orthonormal columns."""
    return torch.linalg.qr(gaussian(seed, rows, cols).double()).Q


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), rows=sizes, cols=sizes, rank=sizes)
def test_a_product_has_the_singular_values_of_the_multiplied_matrix(
    seed: int, rows: int, cols: int, rank: int
) -> None:
    up, down = gaussian(seed, rows, rank), gaussian(seed + 1, rank, cols)
    values = product_singular_values(up, down)
    expected = np.linalg.svd(up.double().numpy() @ down.double().numpy(), compute_uv=False)
    assert len(values) == min(rows, cols, rank)
    np.testing.assert_allclose(values, expected[: len(values)], rtol=1e-9, atol=1e-12 * expected[0])


def test_the_condition_of_a_product_is_not_that_of_rounding_errors() -> None:
    spectrum = torch.tensor([8.0, 4.0, 2.0], dtype=torch.float64)
    up, down = (orthogonal(1, 20, 3) * spectrum).float(), orthogonal(2, 15, 3).T.float()
    values = product_singular_values(up, down)
    np.testing.assert_allclose(values, spectrum, rtol=1e-6)
    assert condition(values) == pytest.approx(4.0, rel=1e-6)
    assert np.linalg.cond((up @ down).numpy()) > 1e6  # what multiplying in float32 makes of it


@pytest.mark.parametrize("n", [1, 7, 32])
def test_an_orthogonal_matrix_uses_all_its_dimensions(n: int) -> None:
    values = torch.linalg.svdvals(orthogonal(n, n, n))
    assert condition(values) == pytest.approx(1.0)
    assert entropy_rank(values) == pytest.approx(n)
    assert rank_for_loss(values, 0.26) == math.ceil(0.74 * n)


def test_a_matrix_of_rank_one_and_one_of_zeros() -> None:
    one = torch.linalg.svdvals(torch.outer(gaussian(1, 6).double(), gaussian(2, 4).double()))
    assert condition(one) is None
    assert entropy_rank(one) == pytest.approx(1.0)
    assert rank_for_loss(one, 0.01) == 1
    zeros = torch.zeros(4, dtype=torch.float64)
    assert (condition(zeros), entropy_rank(zeros), rank_for_loss(zeros, 0.01)) == (None, 0.0, 0)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), loss=st.sampled_from([0.001, 0.01, 0.3])
)
def test_ranks_are_those_of_their_definitions(values: list[float], loss: float) -> None:
    spectrum = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    rank = entropy_rank(spectrum)
    assert rank == pytest.approx(math.exp(scipy.stats.entropy(values)))
    assert 1 - 1e-9 <= rank <= len(values) + 1e-9
    assert entropy_rank(spectrum * 1000) == pytest.approx(rank)
    needed = rank_for_loss(spectrum, loss)
    left_out = [
        sum(x * x for x in spectrum.tolist()[r:]) / sum(x * x for x in values) for r in (needed, needed - 1)
    ]
    assert left_out[0] <= loss + 1e-12
    assert left_out[1] > loss - 1e-12


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), loss=st.sampled_from([0.01, 0.1, 0.5]))
def test_the_needed_rank_keeps_the_matrix(seed: int, loss: float) -> None:
    weight = gaussian(seed, 9, 14).double().numpy()
    needed = rank_for_loss(torch.linalg.svdvals(torch.from_numpy(weight)), loss)
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    kept = [u[:, :r] * s[:r] @ vt[:r] for r in (needed, needed - 1)]
    lost = [np.linalg.norm(weight - k) ** 2 / np.linalg.norm(weight) ** 2 for k in kept]
    assert lost[0] <= loss < lost[1]


def test_every_matrix_of_a_model_is_there_with_its_role() -> None:
    model = shaken(TINY)
    rows = {row.name: row for row in model_spectra(model, "artifact", 0.2)}
    assert len(rows) == 1 + 3 * (3 + 5)  # embedding; q thrice, k, v, out, fc, proj
    q, up, embed = (rows[name] for name in ("blocks.2.attn.q", "blocks.2.attn.q.up", "embed"))
    assert (q.role, q.part, q.layer, q.rows, q.cols, q.label) == ("q", "product", 2, 16, 16, "q")
    assert (up.role, up.part, up.layer, up.rows, up.cols, up.label) == ("q", "up", 2, 16, 5, "q.up")
    assert (embed.role, embed.part, embed.layer, embed.rows, embed.cols) == ("embed", "full", None, 40, 16)
    assert {row.role for row in rows.values()} == {"embed", "q", "k", "v", "out", "fc", "proj"}
    assert {row.source for row in rows.values()} == {"artifact"}
    weights = {name.removesuffix(".weight"): p for name, p in model.state_dict().items()}
    weights["blocks.2.attn.q"] = weights["blocks.2.attn.q.up"] @ weights["blocks.2.attn.q.down"]
    for name in ("blocks.2.attn.q", "blocks.2.attn.q.down", "blocks.0.attn.v", "blocks.1.mlp.proj", "embed"):
        row, expected = rows[name], np.linalg.svd(weights[name].double().numpy(), compute_uv=False)
        np.testing.assert_allclose(row.singular_values, expected[: len(row.singular_values)], rtol=1e-4)
        assert row.condition == pytest.approx(row.singular_values[0] / row.singular_values[-1])
        spectrum = torch.tensor(row.singular_values, dtype=torch.float64)
        assert row.entropy_rank == pytest.approx(entropy_rank(spectrum))
        assert row.needed_rank == rank_for_loss(spectrum, 0.2)


def test_any_projection_may_be_low_rank() -> None:
    model = shaken(TINY)
    model.blocks[1].attn.k = low = LowRank(16, 8, 3, "attn")
    for p in low.parameters():  # a model starts its own; these were never given a value
        torch.nn.init.orthogonal_(p)
    rows = [row for row in model_spectra(model, "checkpoint", 0.01) if row.role == "k" and row.layer == 1]
    assert [(row.part, row.rows, row.cols) for row in rows] == [
        ("product", 8, 16),
        ("down", 3, 16),
        ("up", 8, 3),
    ]
    assert [len(row.singular_values) for row in rows] == [3, 3, 3]
