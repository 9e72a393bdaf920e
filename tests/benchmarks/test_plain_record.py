"""The plain form of a record that benchmarks compare with is the same model, and takes the same step."""

import dataclasses

import pytest
import torch
from plain_record import RecordStep
from torch import Tensor

from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.model.gpt import GPT
from pargolf.optim.averaging import average_of
from pargolf.optim.groups import Optimizers
from support import shaken


@pytest.fixture
def config() -> RunConfig:
    """The preset with its loop, its two lanes and its skips, in small."""
    config = load_preset("record-0427")
    small = dataclasses.replace(
        config.model, vocab_size=64, seq_len=48, n_layers=7, d_model=96, n_heads=4, kv_heads=2, xsa_layers=7,
        loop_from=2, loop_to=3, parallel_from=5,
    )  # fmt: skip
    return dataclasses.replace(config, model=small)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Two rows of several documents; one begins with the row."""
    rows = torch.randint(2, 64, (2, 49), generator=torch.Generator().manual_seed(0))
    rows[0, [0, 20, 21]] = rows[1, [7, 40]] = 1
    return rows[:, :-1], rows[:, 1:]


def plain_step(config: RunConfig, model: GPT) -> RecordStep:
    step = RecordStep(config, torch.float32, torch.device("cpu"))
    step.model.load_state_dict(model.state_dict())
    step.means = [p.detach().clone() for p in step.weights]
    return step


def test_loss_and_gradients_are_those_of_the_model(config: RunConfig, batch: tuple[Tensor, Tensor]) -> None:
    model = shaken(config.model)
    plain = plain_step(config, model).model
    assert len(plain.order) > len(plain.blocks)
    losses = [its(*batch) for its in (model, plain)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, p in model.named_parameters():
        mine, theirs = p.grad, gradients[name]
        assert mine is not None and theirs is not None and mine.norm() > 0, name
        assert (mine - theirs).norm() < 1e-5 * mine.norm() + 1e-6, name


def test_two_steps_lead_to_the_same_weights_and_means(
    config: RunConfig, batch: tuple[Tensor, Tensor]
) -> None:
    # With the preset's 1e-8 Adam makes whole steps of gradients that are little more than rounding.
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, adam_eps=1e-6))
    model = shaken(config.model)
    plain = plain_step(config, model)
    optimizers = Optimizers(model, config.optim, torch.float32, average_of(model, config.train))
    with torch.compiler.set_stance("force_eager"):
        for _ in range(2):
            model(*batch).backward()
            optimizers.step(1.0, config.optim.muon_momentum)
            plain(*batch)
    assert optimizers.average is not None
    means = dict(zip(dict(plain.model.named_parameters()), plain.means, strict=True))
    for name, weight in plain.model.named_parameters():
        torch.testing.assert_close(weight, dict(model.named_parameters())[name], rtol=0, atol=1e-4)
        torch.testing.assert_close(means[name], optimizers.average.means[name], rtol=0, atol=1e-6)
