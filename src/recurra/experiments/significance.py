"""Welch's t-test, Holm's correction for several tests, and the number of runs that would decide.

Sources: B. L. Welch, The generalization of Student's problem when several different population
variances are involved, Biometrika 34, 1947; S. Holm, A simple sequentially rejective multiple test
procedure, Scandinavian Journal of Statistics 6, 1979.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

LEVEL = 0.05
"""Probability of at least one wrong decision if all means are equal."""
POWER = 0.8
"""Probability of a decision with the number of runs of `runs_needed`."""
MAX_RUNS = 1000
"""Largest number of runs that `runs_needed` returns."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(400)


def tail_probability(t: float, freedom: float) -> float:
    """Return the probability that Student's t exceeds `t` in absolute value.

    With t = sqrt(freedom) tan(u), the density is proportional to cos(u) ** (freedom - 1), which is
    integrated numerically; the absolute error is below 1e-6.

    Args:
        t: the value of the statistic; its sign does not matter.
        freedom: degrees of freedom, at least 1.

    Examples:
        >>> from recurra.experiments.significance import tail_probability
        >>> round(tail_probability(2.776, 4), 4)
        0.05
    """
    if math.isinf(t):
        return 0.0
    low = math.atan(abs(t) / math.sqrt(freedom))
    half = (math.pi / 2 - low) / 2
    cosines = np.cos(low + half * (_NODES + 1.0))
    log_factor = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    factor = 2.0 * math.exp(log_factor) / math.sqrt(math.pi)
    integral = half * float(_WEIGHTS @ cosines ** (freedom - 1.0))
    return min(factor * integral, 1.0)


def critical_value(probability: float, freedom: float) -> float:
    """Return the value that |t| exceeds with this probability (the two-sided critical value).

    Args:
        probability: the probability, between 0 and 1.
        freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while tail_probability(high, freedom) > probability:
        high *= 2.0
    for _ in range(60):
        middle = (low + high) / 2
        is_below = tail_probability(middle, freedom) > probability
        low, high = (middle, high) if is_below else (low, middle)
    return high


def welch_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value of the hypothesis that two samples have equal means.

    The samples may have different variances. Each has at least two values.

    Examples:
        >>> from recurra.experiments.significance import welch_test
        >>> round(welch_test([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]), 4)
        0.0213
    """
    variances = [statistics.variance(sample) / len(sample) for sample in (first, second)]
    difference = statistics.fmean(second) - statistics.fmean(first)
    if sum(variances) == 0.0:
        return 1.0 if difference == 0.0 else 0.0
    sizes = (len(first), len(second))
    freedom = sum(variances) ** 2 / sum(
        v**2 / (size - 1) for v, size in zip(variances, sizes, strict=True)
    )
    return tail_probability(difference / math.sqrt(sum(variances)), freedom)


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number, in the same order.

    A comparison of the results with `LEVEL` makes a wrong decision in any of the tests with at most
    this probability.

    Examples:
        >>> from recurra.experiments.significance import holm_correction
        >>> holm_correction([0.25, 0.01, 0.02])
        [0.25, 0.03, 0.04]
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def runs_needed(first: Sequence[float], second: Sequence[float], level: float) -> int | None:
    """Return the number of runs of each sample with which Welch's test would probably decide.

    The means and variances are assumed to be those of the samples. The test then decides with
    probability `POWER` if the standardized difference is the sum of the two quantiles of Student's
    t that belong to the level and to the power. This is the usual sample-size formula for two means
    with unequal variances (Chow, Shao and Wang, Sample Size Calculations in Clinical Research,
    chapter 3), with critical values of t instead of the normal distribution.

    Args:
        first: the values of one sample, at least two.
        second: the values of the other sample, at least two.
        level: the level of the test.

    Returns:
        The number, or None if it exceeds `MAX_RUNS`.

    Examples:
        >>> from recurra.experiments.significance import runs_needed
        >>> runs_needed([2.693, 2.731], [2.798, 2.844], 0.05)
        3
    """
    variances = [statistics.variance(sample) for sample in (first, second)]
    difference = abs(statistics.fmean(second) - statistics.fmean(first))

    def is_enough(count: int) -> bool:
        total = sum(variances)
        if total == 0.0:
            return difference > 0.0
        freedom = (count - 1) * total**2 / sum(v**2 for v in variances)
        needed = critical_value(level, freedom) + critical_value(2.0 * (1.0 - POWER), freedom)
        return difference >= needed * math.sqrt(total / count)

    if not is_enough(MAX_RUNS):
        return None
    low, high = 1, MAX_RUNS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
