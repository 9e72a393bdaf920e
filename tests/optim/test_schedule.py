import dataclasses

import pytest

from pargolf.config.schema import OptimConfig, TrainConfig
from pargolf.optim.schedule import decay_scale, lr_scale, muon_momentum


def test_constant_then_linear_to_zero_by_steps() -> None:
    t = TrainConfig(iterations=100, warmdown_steps=40, max_seconds=0)
    assert [lr_scale(step, 0.0, t) for step in (0, 60, 80, 99, 100)] == [1.0, 1.0, 0.5, 0.025, 0.0]


def test_by_the_clock_the_decay_starts_when_the_time_left_is_its_length() -> None:
    t = TrainConfig(iterations=10**6, warmdown_steps=100, max_seconds=60.0)
    # 0.2 s a step so far: 100 steps take 20 s.
    assert lr_scale(150, 30.0, t) == 1.0
    assert lr_scale(200, 40.0, t) == pytest.approx(1.0)
    assert lr_scale(250, 50.0, t) == pytest.approx(0.5)
    assert lr_scale(300, 60.0, t) == 0.0


def test_whichever_end_comes_first_rules() -> None:
    t = TrainConfig(iterations=100, warmdown_steps=50, max_seconds=1000.0)
    assert lr_scale(90, 9.0, t) == pytest.approx(0.2)


def test_fraction_replaces_the_number_of_steps() -> None:
    t = TrainConfig(iterations=1000, warmdown_steps=1, warmdown_fraction=0.5, max_seconds=0)
    assert lr_scale(750, 0.0, t) == pytest.approx(0.5)
    clocked = dataclasses.replace(t, iterations=10**6, max_seconds=100.0)
    assert lr_scale(10, 40.0, clocked) == 1.0
    assert lr_scale(10, 75.0, clocked) == pytest.approx(0.5)


def test_the_reserve_is_taken_from_the_steps() -> None:
    t = TrainConfig(iterations=10**6, warmdown_fraction=0.5, max_seconds=110.0, reserve_seconds=10.0)
    assert t.time_limit == 100.0
    assert lr_scale(10, 75.0, t) == pytest.approx(0.5)
    assert lr_scale(10, 100.0, t) == 0.0
    assert TrainConfig(max_seconds=0.0, reserve_seconds=10.0).time_limit == 0.0


def test_no_warmdown_and_no_momentum_warmup() -> None:
    t = TrainConfig(iterations=10, warmdown_steps=0, max_seconds=0)
    assert lr_scale(9, 0.0, t) == 1.0
    assert muon_momentum(0, OptimConfig(muon_momentum_warmup=0)) == 0.99


def test_momentum_rises_linearly() -> None:
    o = OptimConfig()
    assert muon_momentum(0, o) == pytest.approx(0.92)
    assert muon_momentum(750, o) == pytest.approx(0.955)
    assert muon_momentum(9000, o) == pytest.approx(0.99)


def test_a_floor_ends_the_decay() -> None:
    t = TrainConfig(iterations=100, warmdown_fraction=0.5, min_lr=0.1, max_seconds=0)
    assert [lr_scale(step, 0.0, t) for step in (50, 75, 94, 95, 99)] == pytest.approx(
        [1, 0.5, 0.12, 0.1, 0.1]
    )


def test_weight_decay_tapers() -> None:
    o = OptimConfig(muon_decay_end=0.5)
    assert [decay_scale(share, o) for share in (0.0, 0.7, 0.85, 1.0)] == pytest.approx([1, 1, 0.75, 0.5])
    assert decay_scale(1.0, OptimConfig()) == 1.0
