"""Welch's t-test, Holm's correction and the number of runs that would decide."""

import numpy as np
import pytest

from recurra.experiments.significance import (
    critical_value,
    holm_correction,
    runs_needed,
    tail_probability,
    welch_test,
)


@pytest.mark.parametrize(
    ("freedom", "probability", "value"),
    # From the table of Student's t in Abramowitz and Stegun, 26.10.
    [
        (1, 0.05, 12.706), (2, 0.05, 4.303), (3, 0.01, 5.841), (5, 0.1, 2.015), (10, 0.05, 2.228),
        (30, 0.01, 2.750), (120, 0.05, 1.980),
    ],
)  # fmt: skip
def test_quantile_equals_table(freedom, probability, value):
    assert critical_value(probability, freedom) == pytest.approx(value, abs=6e-4)
    assert tail_probability(value, freedom) == pytest.approx(probability, rel=1e-3)


def test_tail_probability_is_symmetric_and_monotonic():
    values = [tail_probability(t, 2.5) for t in (0.0, 0.5, 1.0, 5.0, 100.0)]
    assert values[0] == pytest.approx(1.0)
    assert values == sorted(values, reverse=True)
    assert tail_probability(-1.0, 2.5) == values[2]
    assert tail_probability(float("inf"), 2.5) == 0.0


def test_welch_test_has_its_level_with_unequal_variances():
    generator = np.random.default_rng(0)
    samples = [(generator.normal(0, 1, 3), generator.normal(0, 3, 8)) for _ in range(2000)]
    rejected = np.mean([welch_test(a.tolist(), b.tolist()) < 0.05 for a, b in samples])
    assert 0.03 < rejected < 0.07


def test_welch_test_without_variance():
    assert welch_test([1.0, 1.0], [2.0, 2.0]) == 0.0
    assert welch_test([1.0, 1.0], [1.0, 1.0]) == 1.0


def test_holm_correction_keeps_order_and_is_at_most_one():
    assert holm_correction([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm_correction([0.6, 0.7]) == [1.0, 1.0]
    assert holm_correction([]) == []


@pytest.mark.parametrize("difference", [0.5, 1.0, 2.0])
def test_runs_needed_gives_the_stated_power(difference):
    half = 0.5**0.5  # Two values with this distance from their mean have variance 1.
    first, second = [-half, half], [difference - half, difference + half]
    count = runs_needed(first, second, 0.05)
    assert count is not None
    generator = np.random.default_rng(1)

    def power(size):
        draws = generator.normal(0, 1, (1000, 2, size))
        return np.mean([welch_test(a.tolist(), (b + difference).tolist()) < 0.05 for a, b in draws])

    assert 0.77 < power(count) < 0.92
    assert power(max(count // 2, 2)) < 0.7


def test_runs_needed_is_none_beyond_the_limit():
    assert runs_needed([0.0, 1.0], [0.0, 1.0], 0.05) is None
    assert runs_needed([0.0, 1.0], [0.001, 1.001], 0.05) is None
