import dataclasses

import pytest

from pargolf.config.schema import OptimConfig, TrainConfig
from pargolf.optim.schedule import adam_lr_scale, ahead_by, decay_scale, lr_scale, muon_momentum


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


def test_a_power_bends_the_decay() -> None:
    """As min(lr0, c (T - t)^1.2), which the source writes."""
    t = TrainConfig(iterations=100, warmdown_fraction=0.5, warmdown_power=1.2, max_seconds=0)
    c = 50**-1.2
    for step in (0, 50, 51, 75, 99, 100):
        assert lr_scale(step, 0.0, t) == pytest.approx(min(1.0, c * (100 - step) ** 1.2))
    squared = dataclasses.replace(t, warmdown_power=2.0, min_lr=0.05)
    assert [lr_scale(step, 0.0, squared) for step in (75, 95, 100)] == [0.25, 0.05, 0.05]
    late = dataclasses.replace(t, max_seconds=10.0)  # past the end of the clock nothing is left of any power
    assert lr_scale(60, 11.0, late) == 0.0


def test_adam_cools_down_over_a_share_of_its_own() -> None:
    t = TrainConfig(iterations=100, warmdown_fraction=0.8, adam_warmdown_fraction=0.4, max_seconds=0)
    assert [lr_scale(step, 0.0, t) for step in (20, 60, 80)] == pytest.approx([1.0, 0.5, 0.25])
    assert [adam_lr_scale(step, 0.0, t) for step in (20, 60, 80)] == pytest.approx([1.0, 1.0, 0.5])
    clocked = dataclasses.replace(t, iterations=10**6, max_seconds=100.0)
    assert adam_lr_scale(10, 80.0, clocked) == pytest.approx(0.5)
    by_steps = dataclasses.replace(t, warmdown_fraction=0.0, warmdown_steps=10)
    assert (lr_scale(80, 0.0, by_steps), adam_lr_scale(80, 0.0, by_steps)) == (1.0, pytest.approx(0.5))


def test_momentum_falls_at_the_end() -> None:
    o = OptimConfig(
        muon_momentum=0.95, muon_momentum_warmup=0, muon_momentum_cooldown=0.1, muon_momentum_end=0.85
    )
    shares = (0.0, 0.9, 0.95, 1.0)
    assert [muon_momentum(9, o, share) for share in shares] == pytest.approx([0.95, 0.95, 0.9, 0.85])


def test_weights_go_on_within_shares_of_the_run() -> None:
    o = OptimConfig(ema_nesterov=0.6, ema_nesterov_from=0.25, ema_nesterov_to=0.75)
    assert [ahead_by(share, 0.5, o) for share in (0.2, 0.25, 0.7, 0.75)] == [0.0, 0.3, 0.3, 0.0]
