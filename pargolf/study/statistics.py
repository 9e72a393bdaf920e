"""The tests behind a comparison: t-tests by SciPy, Holm's correction. Lower values are better."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95

# What values are compared with: those of another group, or one published figure, taken as exact.
Reference = Sequence[float] | float


@dataclass(frozen=True)
class TTest:
    """The difference of the means, values minus reference, and how sure it is."""

    low: float
    """95 % confidence interval of the difference, two-sided."""
    high: float
    t: float
    df: float
    p: float
    """Two-sided against a group; against a figure one-sided: p of values that are no better."""


def why_no_test(values: Sequence[float]) -> str:
    """Why no t-test can use these values, or nothing if one can."""
    if len(values) < 2:
        return "1 run, a test needs 2"
    # Equal to the last digits: one run several times, not several runs. A test would find any
    # difference from them significant.
    if math.isclose(min(values), max(values), rel_tol=1e-12):
        return "no variation among the runs"
    return ""


def t_test(values: Sequence[float], reference: Reference) -> TTest:
    """Welch's t-test against a group (Biometrika 34:28, 1947), Student's one-sample test against a figure.

    `why_no_test` must be empty for both.
    """
    two_sided = _scipy_test(values, reference, "two-sided")
    tested, shift = two_sided, 0.0
    if isinstance(reference, float):
        tested, shift = _scipy_test(values, reference, "less"), reference  # SciPy's interval is the mean's
    interval = two_sided.confidence_interval(CONFIDENCE)
    return TTest(
        low=float(interval.low) - shift,
        high=float(interval.high) - shift,
        t=float(tested.statistic),
        df=float(tested.df),
        p=float(tested.pvalue),
    )


def p_better_by(margin: float, values: Sequence[float], reference: Reference) -> float:
    """p of "better than the reference by less than `margin`": the one-sided test, reference moved so far."""
    if isinstance(reference, float):
        return float(_scipy_test(values, reference - margin, "less").pvalue)
    return float(_scipy_test(values, [value - margin for value in reference], "less").pvalue)


def paired_tests(scores: Sequence[Sequence[float]]) -> list[TTest]:
    """The groups after the first against the first, seed by seed; (groups, seeds), each seed at one place.

    Chance is what groups and seeds leave unexplained, over all groups (randomized blocks, Fisher, The
    Design of Experiments, 1935); of two groups it is the paired t-test. Nothing where no test is possible.
    """
    from scipy import stats

    x = np.array(scores, float)
    df = (x.shape[0] - 1) * (x.shape[1] - 1)
    unexplained = x - x.mean(axis=1, keepdims=True) - x.mean(axis=0) + x.mean()
    # Differences that are equal to the last digits are those of copies, as in `why_no_test`.
    if df == 0 or np.abs(unexplained).max() <= 1e-12 * np.abs(x).max():
        return []
    error = float(np.sqrt(2 / x.shape[1] * np.sum(unexplained**2) / df))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, df)) * error
    differences = [float(value) for value in x[1:].mean(axis=1) - x[0].mean()]
    return [
        TTest(d - half, d + half, d / error, df, float(2 * stats.t.sf(abs(d) / error, df)))
        for d in differences
    ]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Each p adjusted for testing all of them (Holm, Scand. J. Statist. 6:65, 1979); None stays None."""
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = largest
    return adjusted


def _scipy_test(values: Sequence[float], reference: Reference, alternative: str) -> Any:
    from scipy import stats

    if isinstance(reference, float):
        return stats.ttest_1samp(values, reference, alternative=alternative)
    return stats.ttest_ind(values, reference, equal_var=False, alternative=alternative)
