"""Screens: balanced mixtures, effects that are there and no others, and what is refused."""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pargolf.config.presets import load_preset
from pargolf.study.ablate import read_axis
from pargolf.study.records import RunRecord
from pargolf.study.screen import choices, estimate, read_screen, screen, spread
from pargolf.system.errors import UserError

axes = st.lists(st.integers(2, 4), min_size=1, max_size=15)


def records(scores: list[float]) -> list[RunRecord]:
    return [RunRecord(f"{n}", score, bytes_total=1000 + n, step_ms=5.0) for n, score in enumerate(scores)]


@given(axes)
def test_every_change_is_made_by_half_of_the_runs_and_beside_half_of_the_others(
    alternatives: list[int],
) -> None:
    changed = np.array(choices(alternatives, 16)) > 0
    assert len(changed) == 32
    assert (changed.sum(0) == 16).all()
    for one in range(len(alternatives)):
        beside = changed[changed[:, one]].sum(0)
        assert (np.delete(beside, one) == 8).all()


@given(axes)
def test_a_run_and_its_mirror_make_all_changes_between_them(alternatives: list[int]) -> None:
    mixtures = choices(alternatives, 16)
    for mixture, mirror in zip(mixtures[::2], mixtures[1::2], strict=True):
        assert all((a > 0) != (b > 0) for a, b in zip(mixture, mirror, strict=True))
    assert all(mixtures[0]) and not any(mixtures[1])
    for axis, count in enumerate(alternatives):
        made = [mixture[axis] for mixture in mixtures if mixture[axis]]
        assert sorted(set(made)) == list(range(1, count))
        assert max(map(made.count, made)) - min(map(made.count, set(made))) <= 1


@given(st.lists(st.just(2), min_size=2, max_size=15), st.integers(0, 2**32))
def test_effects_are_found_whatever_goes_well_together(alternatives: list[int], seed: int) -> None:
    """Two changes that help each other move no effect."""
    draw = random.Random(seed)
    mixtures = choices(alternatives, 16)
    true = [draw.uniform(-0.02, 0.02) for _ in alternatives]
    first, second = 0, len(alternatives) - 1

    def score(mixture: tuple[int, ...]) -> float:
        # +1 or -1, so that the interaction is a mean of 0 for either change.
        together = (2 * mixture[first] - 1) * (2 * mixture[second] - 1)
        return 2.0 + sum(t * m for t, m in zip(true, mixture, strict=True)) + 0.01 * together

    found = estimate([["base", "x"]] * len(true), mixtures, records([score(m) for m in mixtures]))
    assert [effect.bpb for effect in found.effects] == pytest.approx(true, abs=1e-9)


def test_one_axis_is_a_t_test_of_equal_variances() -> None:
    draw = random.Random(1)
    mixtures = choices([2], 8)
    scores = [draw.gauss(2.0 - 0.01 * made, 0.01) for (made,) in mixtures]
    on = [s for s, (made,) in zip(scores, mixtures, strict=True) if made]
    off = [s for s, (made,) in zip(scores, mixtures, strict=True) if not made]
    oracle = stats.ttest_ind(on, off)
    interval = oracle.confidence_interval(0.95)
    found = estimate([["base", "x"]], mixtures, records(scores))
    (effect,) = found.effects
    assert found.df == oracle.df == 14
    assert (effect.p, effect.low, effect.high) == pytest.approx((oracle.pvalue, interval.low, interval.high))
    assert effect.p_holm == pytest.approx(effect.p)
    assert effect.step_ms == pytest.approx(0)
    assert effect.runs == 8


def test_a_screen_cut_short_says_so_where_it_cannot_tell() -> None:
    mixtures = choices([2, 2, 2], 4)
    with pytest.raises(UserError, match="2 finished runs cannot tell 3 effects apart"):
        estimate([["base", "x"]] * 3, mixtures[:2], records([2.0, 2.1]))
    # Six runs are enough for three effects.
    assert estimate([["base", "x"]] * 3, mixtures[:6], records([2.0, 2.1, 2.2, 2.0, 2.1, 2.3])).df == 2


def test_runs_of_different_texts_are_refused() -> None:
    scored = records([2.0, 2.1, 2.2, 2.3])
    scored[0] = dataclasses.replace(scored[0], val_bytes=7)
    with pytest.raises(UserError, match="not all scored on the same text"):
        estimate([["base", "x"]], choices([2], 2), scored)


@pytest.mark.parametrize(
    ("count", "seeds", "need"), [(1, 1, 2), (3, 3, 4), (4, 4, 8), (15, 8, 16), (2, 6, 4)]
)
def test_seeds_must_be_a_power_of_two_above_the_axes(count: int, seeds: int, need: int) -> None:
    with pytest.raises(UserError, match=f"as --seeds, {need} or more"):
        choices([2] * count, seeds)
    assert len(choices([2] * count, need)) == 2 * need


def test_what_makes_no_screen_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"as base,\+xsa"):
        screen(load_preset("demo"), tmp_path / "a", [read_axis("+xsa")], 2)
    alone = [read_axis("base,+legendre-mix"), read_axis("base,+depth-attention")]
    with pytest.raises(UserError, match="does not fit"):
        screen(load_preset("demo"), tmp_path / "a", alone, 4)
    assert not (tmp_path / "a").exists()
    (tmp_path / "study.json").write_text(json.dumps({"base": {}, "variations": {}}))
    with pytest.raises(UserError, match="is no screen"):
        read_screen(tmp_path)


def test_repeated_runs_tell_what_is_chance() -> None:
    """Changes that go badly together widen the intervals, unless repeated runs say what a seed does."""
    mixtures = choices([2, 2, 2], 4)
    scores = [2.0 - 0.01 * m[0] + 0.05 * m[1] * m[2] for m in mixtures]
    names = [["base", "+a"], ["base", "+b"], ["base", "+c"]]
    alone = estimate(names, mixtures, records(scores))
    known = estimate(names, mixtures, records(scores), (0.001, 9))
    assert [effect.bpb for effect in known.effects] == [effect.bpb for effect in alone.effects]
    assert known.effects[0].bpb == pytest.approx(-0.01)
    half = (known.effects[0].high - known.effects[0].low) / 2
    assert half == pytest.approx(stats.t.ppf(0.975, 9) * 0.001 * 2 / 8**0.5)
    assert half < (alone.effects[0].high - alone.effects[0].low) / 4


def test_the_spread_of_repeated_runs() -> None:
    runs = [RunRecord(f"a-seed{n}", score) for n, score in enumerate([2.0, 2.1, 2.2])]
    runs += [RunRecord(f"b-seed{n}", score) for n, score in enumerate([3.0, 3.1, 3.2])]
    assert spread(runs) == (pytest.approx(0.1), 4)
    with pytest.raises(UserError, match="no two"):
        spread(runs[2:4])
