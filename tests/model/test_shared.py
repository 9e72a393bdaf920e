"""Matrices that are polynomials of depth."""

import dataclasses

import numpy as np
import pytest
import torch

from pargolf.config.schema import ModelConfig, RunConfig
from pargolf.config.validation import validate_model
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.model.mlp import MLP
from pargolf.plan.roofline import model_flops
from pargolf.system.errors import UserError
from support import shaken

SHARED = ModelConfig(
    vocab_size=64, seq_len=16, n_layers=6, d_model=24, n_heads=4, kv_heads=2, q_rank=0,
    legendre_attn=3, legendre_mlp=2,
)  # fmt: skip
OWN = dataclasses.replace(SHARED, legendre_attn=0, legendre_mlp=0)


@torch.no_grad()
def test_a_shared_model_is_one_whose_layers_have_the_polynomials_matrices() -> None:
    shared, own = shaken(SHARED), shaken(OWN)
    values = dict(shared.named_parameters())
    for layer in range(6):
        depth = 2 * layer / 5 - 1
        for role in ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.fc", "mlp.proj"):
            name, scale = role.split(".")[1], values.pop(f"blocks.{layer}.{role}.scale", None)
            if scale is not None:
                assert 0 < layer < 5
                degree = 3 if role.startswith("attn") else 2
                polynomials = [np.polynomial.Legendre.basis(k)(depth) for k in range(degree + 1)]
                made = sum(p * values[f"shared.{name}.c{k}"] for k, p in enumerate(polynomials))
                values[f"blocks.{layer}.{role}.weight"] = torch.nn.Parameter(scale * made)
    own.load_state_dict({name: value for name, value in values.items() if not name.startswith("shared.")})
    tokens = torch.randint(64, (2, 16))
    torch.testing.assert_close(shared.trunk(tokens), own.trunk(tokens), atol=1e-4, rtol=1e-4)


def test_coefficients_are_stored_once_trained_as_matrices_and_start_smaller_with_their_degree() -> None:
    model = GPT(dataclasses.replace(SHARED, d_model=64), seed=0)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    slots = tensor_kinds(model)
    assert slots["shared.fc.c2"].kind == "mlp" and slots["shared.q.c3"].kind == "attn"
    assert slots["shared.q.c3"].layer is None and slots["blocks.2.attn.q.scale"].layer == 2
    assert model.shared is not None
    deviations = [float(c.detach().std()) for c in model.shared["q"].parameters()]
    assert deviations == pytest.approx([0.5**k / 8 for k in range(4)], rel=0.1)
    assert not any(c.any() for c in model.shared["proj"].parameters())


def test_a_token_costs_what_it_costs_with_matrices_of_the_layers_own() -> None:
    assert model_flops(RunConfig(SHARED)) == pytest.approx(model_flops(RunConfig(OWN)), rel=0.02)


def test_layers_may_share_the_mlp_alone_and_low_ranks_do_not_go_with_it() -> None:
    mlps_alone = dataclasses.replace(SHARED, legendre_attn=0, q_rank=5)
    validate_model(mlps_alone)
    model = shaken(mlps_alone)
    assert model.shared is not None and set(model.shared) == {"fc", "proj"}
    assert isinstance(model.blocks[2].mlp, MLP)
    with pytest.raises(UserError, match="legendre_attn is of full matrices"):
        validate_model(dataclasses.replace(SHARED, q_rank=5))
