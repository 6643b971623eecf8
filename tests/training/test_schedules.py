"""learning_rate: the rate of each schedule as a function of the progress in [0, 1]."""

import math

import pytest

from recurra.config import TrainingConfig
from recurra.training.schedules import learning_rate


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "linear"])
def test_learning_rate_warm_up_is_linear_and_positive(schedule):
    config = TrainingConfig(lr=2.0, warmup=0.1, schedule=schedule)
    assert learning_rate(config, 0.05) == pytest.approx(1.0)
    assert 0 < learning_rate(config, 0.0) < 0.01


def test_learning_rate_constant_schedule_does_not_change():
    config = TrainingConfig(lr=2.0, warmup=0.0, schedule="constant")
    assert [learning_rate(config, s) for s in (0.0, 0.5, 1.0, 2.0)] == [2.0] * 4


def test_learning_rate_step_schedule_decays_at_milestones():
    config = TrainingConfig(
        lr=1.0, warmup=0.0, schedule="step", lr_milestones=(0.5, 0.75), lr_decay=0.1
    )
    rates = [learning_rate(config, s) for s in (0.49, 0.5, 0.74, 0.75, 1.0)]
    assert rates == pytest.approx([1.0, 0.1, 0.1, 0.01, 0.01])


def test_learning_rate_cosine_schedule_ends_at_final_lr():
    config = TrainingConfig(lr=4.0, warmup=0.2, schedule="cosine", final_lr=0.1)
    assert learning_rate(config, 0.2) == pytest.approx(4.0)
    assert learning_rate(config, 1.0) == pytest.approx(0.4)
    assert learning_rate(config, 1.5) == pytest.approx(0.4)
    progress = (0.5 - 0.2) / 0.8
    expected = 4.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)
    assert learning_rate(config, 0.5) == pytest.approx(expected)


def test_learning_rate_linear_schedule_decreases_linearly():
    config = TrainingConfig(lr=4.0, warmup=0.2, schedule="linear", final_lr=0.0)
    rates = [learning_rate(config, s) for s in (0.2, 0.4, 0.6, 1.0, 2.0)]
    assert rates == pytest.approx([4.0, 3.0, 2.0, 0.0, 0.0])


def test_learning_rate_one_cycle_uses_two_half_cosines():
    config = TrainingConfig(lr=5.0, warmup=0.4, schedule="one-cycle", final_lr=0.01)
    assert learning_rate(config, 0.0) == pytest.approx(0.2)
    assert learning_rate(config, 0.2) == pytest.approx((0.2 + 5.0) / 2)
    assert learning_rate(config, 0.4) == pytest.approx(5.0)
    assert learning_rate(config, 0.7) == pytest.approx((5.0 + 0.05) / 2)
    assert learning_rate(config, 1.0) == pytest.approx(0.05)
