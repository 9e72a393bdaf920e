"""Arithmetic on paper against what PyTorch counts, and the predictions made from it."""

import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pargolf.config.presets import load_preset
from pargolf.config.schema import ModelConfig, RunConfig, TrainConfig
from pargolf.kernels import native
from pargolf.model.gpt import GPT
from pargolf.optim.muon import newton_schulz
from pargolf.plan import forecast
from pargolf.plan.roofline import H100, Machine, Work, least_seconds, model_flops, step_cost

TINY = RunConfig(
    ModelConfig(vocab_size=96, seq_len=32, n_layers=3, d_model=32, n_heads=4, kv_heads=2, q_rank=8),
    train=TrainConfig(batch_tokens=128, micro_batches=1, compile="off", dtype="float32", max_seconds=60),
)
PUBLISHED = load_preset("lowrank-q192")


@pytest.mark.parametrize("q_rank", [0, 8])
def test_multiplies_are_those_that_pytorch_counts(q_rank: int) -> None:
    config = replace(TINY, model=replace(TINY.model, q_rank=q_rank))
    model = GPT(config.model, seed=0)
    tokens = torch.zeros(4, 33, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(tokens[:, :-1], tokens[:, 1:]).backward()
    multiplies = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    cost = step_cost(config)
    assert cost["matrices of the layers"].flops + cost["head and loss"].flops == multiplies


def test_attention_is_two_products_over_the_causal_half() -> None:
    c = TINY.model
    pairs = sum(position + 1 for position in range(c.seq_len))  # of a query and a key it sees
    rows = TINY.train.batch_tokens // c.seq_len
    forward = c.n_layers * rows * pairs * 2 * (2 * c.d_model)
    assert step_cost(TINY)["attention"].flops == 3 * forward


@pytest.mark.parametrize("ranks", [1, 2])
def test_orthogonalizing_costs_what_pytorch_counts_for_a_share(ranks: int) -> None:
    """Of 3 layers, the rank with most takes 2; k and v have one shape, so of these 6 it takes 3."""
    shapes = {(8, 32): 3, (32, 8): 3, (16, 32): 6, (32, 32): 3, (96, 32): 3, (32, 96): 3}
    with FlopCounterMode(display=False) as counter:
        for shape, number in shapes.items():
            newton_schulz(torch.ones(-(-number // ranks), *shape), TINY.optim.ns_steps)
    config = replace(TINY, train=replace(TINY.train, micro_batches=2))
    assert step_cost(config, ranks)["optimizer"].flops == counter.get_total_flops()


def test_a_part_waits_for_its_slowest_rate_and_parts_for_each_other() -> None:
    machine = Machine("slow", flops=10, bandwidth=5, link=2)
    assert Work(20, 5, 1).seconds(machine) == 2
    assert Work(20, 50, 1).seconds(machine) == 10
    assert Work(20, 50, 30).seconds(machine) == 15
    parts = step_cost(PUBLISHED, 8).values()
    assert least_seconds(PUBLISHED, H100, 8) == pytest.approx(sum(work.seconds(H100) for work in parts))


def test_eight_ranks_share_the_tokens_and_exchange_gradients() -> None:
    one, eight = step_cost(PUBLISHED), step_cost(PUBLISHED, 8)
    assert "exchange" not in one
    for part in ("matrices of the layers", "attention", "head and loss"):
        assert (8 * eight[part].flops, 8 * eight[part].bytes) == (one[part].flops, one[part].bytes)
    # Gradients twice around the ring; of 11 layers 2 matrices of a shape each, of 22 k and v 3, in bfloat16.
    matrices = 2 * (2 * 192 * 512 + 512 * 512 + 2 * 512 * 1536) + 3 * 256 * 512
    assert eight["exchange"].exchanged == 2 * 7 * 4 * 25_780_824 // 8 + 7 * 2 * matrices
    assert model_flops(PUBLISHED) == 6 * (25_780_824 - 25_176) + 6 * 11 * 512 * 1025


@pytest.mark.parametrize(("preset", "milliseconds"), [("lowrank-q192", 48.8), ("full-q", 47.9)])
def test_predictions_for_an_h100_are_what_was_measured_on_one(preset: str, milliseconds: float) -> None:
    """A micro-batch of 65,536 tokens as a step of its own (docs/performance.md)."""
    config = load_preset(preset)
    config = replace(config, train=replace(config.train, batch_tokens=65_536, micro_batches=1))
    assert 1000 * forecast.h100_step_seconds(config, 1) == pytest.approx(milliseconds, rel=0.02)


def test_the_prediction_for_a_cpu_scales_the_time_of_a_try(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr("pargolf.plan.forecast.time.perf_counter", lambda: 0.25 * next(ticks))
    # The try: two layers on 2048 tokens, a quarter of a second. Asked for: the same on 128 tokens.
    config = replace(TINY, model=replace(TINY.model, n_layers=2))
    share = sum(work.flops for work in step_cost(config).values()) / model_flops(config) / 2048
    assert forecast.cpu_step_seconds(config, "float32") == pytest.approx(0.25 * share)


@pytest.mark.parametrize("compiled", ["on", "off"])
def test_the_try_has_the_attention_of_training(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, starts: None) -> Tensor:
        used.append(q.shape)
        return q + k.repeat_interleave(2, 2) + v.repeat_interleave(2, 2)

    monkeypatch.setattr(native, "attention_kernel", lambda *_: kernel)
    monkeypatch.setattr("pargolf.system.machine.resolve_compile", lambda *_: compiled)
    forecast.cpu_step_seconds(replace(TINY, train=replace(TINY.train, compile=compiled)), "float32")
    assert bool(used) == (compiled == "on")


def test_what_would_take_most_of_the_memory_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = replace(TINY, model=replace(TINY.model, d_model=65_536))
    names = [row.machine for row in forecast.forecasts(wide)]
    assert names == ["1 x H100 SXM"]
    # Twice 2 layers of 65536 x 65536 values, and more, are not in any machine's half.
    monkeypatch.setattr("pargolf.system.machine.memory_bytes", lambda: 10**15)
    monkeypatch.setattr(forecast, "cpu_step_seconds", lambda config, dtype: 0.7)
    assert len(forecast.forecasts(wide)) == 2


def test_a_run_ends_by_the_clock_or_by_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "cpu_step_seconds", lambda config, dtype: 0.7)
    *_, here = forecast.forecasts(TINY)
    assert (here.steps, here.tokens, here.seconds) == (86, 86 * 128, pytest.approx(60.2))
    *_, here = forecast.forecasts(replace(TINY, train=replace(TINY.train, iterations=20)))
    assert here.steps == 20
    assert [row.machine for row in forecast.forecasts(PUBLISHED)[:2]] == ["8 x H100 SXM", "1 x H100 SXM"]
    assert forecast.forecasts(TINY)[0].machine == "1 x H100 SXM"  # one micro-batch cannot be shared


def test_a_run_that_begins_without_its_loops_takes_as_much_less() -> None:
    record = load_preset("record-0427")
    always, never = (
        forecast.h100_step_seconds(replace(record, train=replace(record.train, loop_share=share)), 8)
        for share in (0.0, 1.0)
    )
    once = replace(record, model=replace(record.model, loop_times=0))
    assert forecast.h100_step_seconds(once, 8) == pytest.approx(never)
    assert 1.3 < always / never < 1.6
    assert forecast.h100_step_seconds(record, 8) == pytest.approx(0.35 * never + 0.65 * always)


def test_a_model_with_loops_and_lanes_is_tried_in_two_plain_layers() -> None:
    assert forecast.cpu_step_seconds(load_preset("record-0427+small"), "float32") > 0


def test_the_tables_in_the_documentation_are_those_of_the_benchmark() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / "benchmarks/roofline.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    eight, _, one = printed.partition("lowrank-q192 on 1 x H100")
    _, _, published = one.partition("published, 8 x H100")
    rows = [line.rstrip() for line in (eight + published).splitlines() if line.startswith("| ")]
    documented = (root / "docs/roofline.md").read_text().splitlines()
    assert len(rows) == 22
    assert [row for row in rows if row not in documented] == []
