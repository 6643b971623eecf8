"""Learning rate schedules as functions of the progress through the budget."""

from __future__ import annotations

import math

from recurra.config import TrainingConfig

ONE_CYCLE_START = 1 / 25
"""Initial learning rate of the one-cycle schedule, as a fraction of the maximum."""


def learning_rate(config: TrainingConfig, spent: float) -> float:
    """Return the learning rate.

    It rises linearly to `lr` during the first `warmup` fraction of the budget. The schedule
    determines the rest:

    - constant: it stays at `lr`.
    - step: it is multiplied by `lr_decay` at each milestone.
    - linear: it falls linearly to `final_lr` times `lr`.
    - cosine: it falls to the same value along half a cosine (Loshchilov and Hutter 2017, without
      restarts).
    - one-cycle: it falls like cosine, and the warm-up is half a cosine, too (Smith and Topin 2018,
      with constant momentum).

    Args:
        config: the schedule and its settings.
        spent: fraction of the budget that is spent; values outside [0, 1] are clamped.
    """
    spent = min(max(spent, 0.0), 1.0)
    if spent < config.warmup:
        return config.lr * _warmup_factor(config, spent / config.warmup)
    if config.schedule == "step":
        passed = sum(spent >= milestone for milestone in config.lr_milestones)
        return config.lr * config.lr_decay**passed
    if config.schedule == "constant":
        return config.lr
    fraction = (spent - config.warmup) / max(1.0 - config.warmup, 1e-12)
    left = 1.0 - fraction if config.schedule == "linear" else _half_cosine(1.0 - fraction)
    return config.lr * (config.final_lr + (1.0 - config.final_lr) * left)


def _warmup_factor(config: TrainingConfig, fraction: float) -> float:
    """Return the factor of the learning rate after this fraction of the warm-up."""
    if config.schedule == "one-cycle":
        return ONE_CYCLE_START + (1.0 - ONE_CYCLE_START) * _half_cosine(fraction)
    return max(fraction, 1e-3)


def _half_cosine(fraction: float) -> float:
    """Return a value that rises from 0 to 1 along half a cosine, as `fraction` does."""
    return 0.5 * (1.0 - math.cos(math.pi * fraction))
