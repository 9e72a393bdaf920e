"""Figures worked out again: rounding, and the test against a record, compared with formulas."""

import math
from decimal import Decimal
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pargolf.check.figures import RecordToBeat, agrees, cut, fits
from pargolf.run.logs import LoggedScore
from submission_support import by_rule


@given(st.decimals("0.5", "3", places=8), st.integers(4, 8))
def test_a_figure_agrees_with_its_roundings_alone(value: Decimal, places: int) -> None:
    step = Decimal(1).scaleb(-places)
    rounded = value.quantize(step)
    assert agrees(rounded, value) and agrees(value, rounded)
    assert not agrees(rounded + 2 * step, value) and not agrees(rounded - 2 * step, value)
    short = value.quantize(step, rounding="ROUND_DOWN")
    assert agrees(short, value) or cut(short, value)


def test_rounding_of_the_longer_figure_decides() -> None:
    assert not agrees(Decimal("1.1122"), Decimal("1.11212378"))
    assert agrees(Decimal("1.1121"), Decimal("1.11212378"))
    assert not cut(Decimal("1.1122"), Decimal("1.11212378"))
    assert cut(Decimal("1.07643"), Decimal("1.07643788")) and not agrees(
        Decimal("1.07643"), Decimal("1.07643788")
    )


@given(st.floats(0.5, 9), st.integers(1000, 10**8), st.floats(1, 8), st.sampled_from([4, 8]))
def test_bits_follow_from_nats(nats: float, tokens: int, bytes_a_token: float, places: int) -> None:
    size = int(tokens * bytes_a_token)
    val_loss, val_bpb = (
        Decimal(f"{value:.{places}f}") for value in (nats, nats / math.log(2) * tokens / size)
    )
    assert fits(LoggedScore("a", val_loss, val_bpb, None, None, tokens, size))
    # A byte-fallback token counted as three bytes, say: 4 % too many.
    wrong = Decimal(f"{nats / math.log(2) * tokens / (size * 1.04):.{places}f}")
    assert not fits(LoggedScore("a", val_loss, wrong, None, None, tokens, size))
    assert fits(LoggedScore("a", val_loss, wrong, None, None, None, None))


def test_two_decimals_are_too_few_to_agree() -> None:
    assert not agrees(Decimal("1.22"), Decimal("1.2244"))
    assert agrees(Decimal("1.081"), Decimal("1.08100000"))


def test_the_record_is_tested_as_a_t_test_by_hand(good: Path) -> None:
    losses = [1.95012345, 1.95112345, 1.95212345]
    mean, spread = sum(losses) / 3, 0.001  # equally spaced: their standard deviation
    ratio = mean / (sum([1.15498765, 1.15557992, 1.15617218]) / 3)
    for bpb, accepted in ((1.1748, True), (1.1600, False), (1.1500, False)):
        t = (mean - (bpb * ratio - 0.005)) / (spread / 3**0.5)
        p = float(stats.t.cdf(t, 2))
        found = by_rule(good, RecordToBeat("that", bpb))["record"]
        assert f"t = {t:.2f}, df = 2, p = {p:.2g}" in found.message
        assert found.level == ("ok" if accepted else "fault")
        assert (p < 0.01) is accepted


def test_without_a_record_the_test_is_not_made(good: Path) -> None:
    assert by_rule(good, None)["record"].level == "not checked"
