"""The statistics: the published test, formulas written out, and the edges where no test is possible."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import stdtr

from pargolf.study.statistics import holm, p_better_by, t_test, why_no_test

bpb = st.floats(0.5, 3.0).map(lambda x: round(x, 6))
groups = st.lists(bpb, min_size=2, max_size=6).filter(lambda values: statistics.stdev(values) > 1e-4)


def test_the_published_test_of_the_published_system() -> None:
    test = t_test([1.1548, 1.1552, 1.1575], 1.1748)
    assert test.t == pytest.approx(-22.54, abs=0.01)
    assert test.df == 2
    assert 0.0009 < test.p < 0.001
    assert test.low == pytest.approx(-0.0226, abs=1e-4)
    assert test.high == pytest.approx(-0.0153, abs=1e-4)


@given(groups, groups)
def test_welch_is_its_formula(a: list[float], b: list[float]) -> None:
    parts = [statistics.variance(values) / len(values) for values in (a, b)]
    error = math.sqrt(sum(parts))
    t = (statistics.fmean(a) - statistics.fmean(b)) / error
    df = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True)
    )
    test = t_test(a, b)
    assert test.t == pytest.approx(t, rel=1e-6, abs=1e-6)
    assert test.df == pytest.approx(df, rel=1e-6)
    assert test.p == pytest.approx(2 * stdtr(df, -abs(t)), rel=1e-4, abs=1e-9)
    assert (test.low > 0 or test.high < 0) == (test.p < 0.05)
    assert (test.low + test.high) / 2 == pytest.approx(statistics.fmean(a) - statistics.fmean(b), abs=1e-9)


@given(groups, bpb)
def test_a_figure_is_beaten_one_sided(values: list[float], figure: float) -> None:
    error = statistics.stdev(values) / math.sqrt(len(values))
    t = (statistics.fmean(values) - figure) / error
    assert t_test(values, figure).p == pytest.approx(stdtr(len(values) - 1, t), rel=1e-4, abs=1e-9)


@given(groups, groups, bpb)
def test_a_margin_is_a_worse_value_to_beat(values: list[float], group: list[float], figure: float) -> None:
    for reference in (group, figure):
        assert p_better_by(0.01, values, reference) > p_better_by(0.0, values, reference) - 1e-12
    moved = [value + 0.005 for value in values]
    assert p_better_by(0.005, values, figure) == pytest.approx(p_better_by(0.0, moved, figure), rel=1e-6)


def test_the_margin_is_tested_and_not_only_reached() -> None:
    better, much_better = [1.990, 1.994, 1.992], [1.960, 1.964, 1.962]
    baseline = [2.000, 2.002, 2.001]
    assert t_test(better, baseline).p < 0.05
    assert statistics.fmean(baseline) - statistics.fmean(better) > 0.005
    assert p_better_by(0.005, better, baseline) > 0.01 > p_better_by(0.005, much_better, baseline)


def test_groups_without_variation_or_with_one_run_have_no_test() -> None:
    assert "1 run" in why_no_test([2.0])
    assert "no variation" in why_no_test([0.1 + 0.2, 0.3])
    assert why_no_test([2.0, 2.0001]) == ""


def test_holm_by_hand() -> None:
    # Smallest of three times 3, next times 2, last as it is; never smaller than the one before.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([None, 0.02]) == [None, 0.02]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1) | st.none(), max_size=8))
def test_holm_lies_between_the_raw_p_and_bonferroni_s(p_values: list[float | None]) -> None:
    count = sum(p is not None for p in p_values)
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        if p is None or adjusted is None:
            assert p is adjusted
        else:
            assert p <= adjusted <= min(1.0, count * p)
