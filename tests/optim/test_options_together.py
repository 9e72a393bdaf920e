"""All options of the optimizers: in checkpoints, in a submission's file, and refused where they clash."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pargolf.bundle.single_file import bundle
from pargolf.config.presets import load_preset
from pargolf.config.schema import ModelConfig, OptimConfig, RunConfig, TrainConfig
from pargolf.config.validation import validate
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.optim.averaging import average_of
from pargolf.optim.groups import Optimizers
from pargolf.plan.cost import kept_in_training
from pargolf.system.errors import UserError
from pargolf.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from support import ALL_OF_OPTIM

TINY = ModelConfig(vocab_size=32, seq_len=8, n_layers=2, d_model=16, n_heads=2, kv_heads=1, q_rank=4)
TRAIN = TrainConfig(tail_ema=0.6, tail_ema_below=0.5)


def built(o: OptimConfig = ALL_OF_OPTIM, t: TrainConfig = TRAIN) -> tuple[GPT, Optimizers]:
    model = GPT(TINY, seed=0)
    return model, Optimizers(model, o, torch.float32, average_of(model, t))


def run_steps(model: GPT, optimizers: Optimizers, numbers: range) -> None:
    for number in numbers:
        assert optimizers.ahead is not None
        with optimizers.ahead.shifted(0.5):
            tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(number))
            model(tokens[:, :-1], tokens[:, 1:]).backward()
            optimizers.step(0.4, 0.9, 1.0, 0.8)


@pytest.mark.parametrize("until", [0, 1, 4])
def test_what_is_saved_goes_on_bit_by_bit(until: int, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model, optimizers = built()
    run_steps(model, optimizers, range(until))
    save_checkpoint(path, model, optimizers, Progress(until))
    other, fresh = built()
    run_steps(other, fresh, range(7, 9))  # what was there before is gone
    assert load_checkpoint(path, other, fresh) == Progress(until)
    for each in ((model, optimizers), (other, fresh)):
        run_steps(*each, range(until, until + 3))
    for ours, theirs in ((model.state_dict(), other.state_dict()), (optimizers.state(), fresh.state())):
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_off_nothing_is_kept() -> None:
    _, optimizers = built(OptimConfig(), TrainConfig())
    assert {name.split("/")[0] for name in optimizers.state()} == {"momentum_buffer"}
    _, optimizers = built()
    soaped = {name.split("/", 1)[1] for name in optimizers.state() if name.startswith("soap_left/")}
    assert soaped == {f"blocks.{layer}.mlp.{name}.weight" for layer in range(2) for name in ("fc", "proj")}


def test_a_plan_counts_what_is_kept() -> None:
    config = RunConfig(TINY, train=TRAIN, optim=OptimConfig(soap="mlp", ema_nesterov=0.5))
    model, optimizers = built(config.optim)
    slots = tensor_kinds(model)
    planned = [kept_in_training(p.shape, slots[name].kind, config) for name, p in model.named_parameters()]
    kept = [shape.numel() for shape in optimizers.state_shapes(started=True).values() if shape]
    before_a_step = sum(p.numel() for p in model.parameters())
    assert sum(planned) == sum(kept) + before_a_step


def test_adam_decays_cautiously_and_looks_back_by_kind() -> None:
    """Against AdamW without decay, one for each kind, and the decay by hand."""
    o = OptimConfig(adam_cautious_decay=True, embed_weight_decay=0.5, embed_beta2=0.9, adam_beta2=0.99)
    model, optimizers = built(o, TrainConfig())
    embed, vector = (model.get_parameter(name) for name in ("embed.weight", "skip_weights"))
    ours = [embed, vector]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    oracles = [
        torch.optim.AdamW([p], lr=lr, betas=(0.9, beta2), eps=o.adam_eps, weight_decay=0)
        for p, lr, beta2 in zip(theirs, (o.embed_lr, o.vector_lr), (0.9, 0.99), strict=True)
    ]
    for number in range(4):
        random = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        for p, same, oracle in zip(ours, theirs, oracles, strict=True):
            assert p.grad is not None
            same.grad, before = p.grad.clone(), same.detach().clone()
            oracle.step()
            decays = (before - same.detach()) * before > 0
            if p is embed:
                with torch.no_grad():
                    same[decays] *= 1 - 0.5 * o.embed_lr
                assert 0.2 < decays.float().mean() < 0.8
        optimizers.step(1.0, 0.9)
        for p, same in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, same, rtol=1e-5, atol=1e-7)


def test_matrices_and_the_rest_have_rates_of_their_own() -> None:
    model, optimizers = built(OptimConfig(), TrainConfig())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step(0.0, 0.9, 1.0, 0.5)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert "embed.weight" in moved and not any(name.endswith("fc.weight") for name in moved)


def test_a_submission_holds_the_options_it_uses() -> None:
    words = (
        "whitened",
        "neuron_normed",
        "floored",
        "pinned",
        "class Ahead",
        "_step_adam_cautiously",
        "tail_ema:",
    )
    plain = load_preset("lowrank-q192")
    source = bundle(plain)
    assert not [word for word in words if f"def {word}(" in source or word in source.split("class Muon")[1]]
    source = bundle(
        replace(plain, optim=ALL_OF_OPTIM, train=replace(plain.train, tail_ema=0.6, warmdown_power=1.2))
    )
    assert [word for word in words if word not in source] == []


@pytest.mark.parametrize(
    ("optim", "train", "message"),
    [
        ({"update_floor_rows": True}, {}, "set optim.update_floor"),
        ({"muon_cautious_decay": True, "muon_weight_decay": 0.0}, {}, "set optim.muon_weight_decay"),
        ({"adam_cautious_decay": True}, {}, "set optim.embed_weight_decay"),
        ({"ema_nesterov": 0.5, "ema_nesterov_from": 0.8}, {}, "is not below ema_nesterov_to"),
        ({}, {"tail_ema": 0.5, "swa_every": 5}, "set one"),
        ({}, {"tail_ema": 0.5, "min_lr": 0.4}, "tail_ema never begins"),
    ],
    ids=str,
)
def test_what_contradicts_is_one_line(optim: dict[str, Any], train: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        validate(RunConfig(optim=OptimConfig(**optim), train=TrainConfig(**train)))
    assert "\n" not in str(caught.value)


def test_everything_at_once_is_no_contradiction() -> None:
    validate(RunConfig(optim=ALL_OF_OPTIM, train=TRAIN))
