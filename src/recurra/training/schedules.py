"""Learning rate schedules as functions of the progress through the budget."""

from __future__ import annotations

import math

from recurra.config import TrainingConfig

ONE_CYCLE_START = 1 / 25
"""Where one-cycle begins, as a share of its peak."""


def learning_rate(config: TrainingConfig, spent: float) -> float:
    """The learning rate when the share `spent` (0 to 1) of the budget is used up.

    It rises linearly during the first `warmup` share. Then it stays (constant), falls by `lr_decay`
    at each milestone (step), or falls to `final_lr` times the peak: along half a cosine (cosine:
    Loshchilov and Hutter 2017, without restarts) or a straight line (linear). one-cycle is the
    cosine whose rise is half a cosine, too (Smith and Topin 2018; momentum stays as it is). Budgets
    in epochs, steps and minutes all work, since only the share counts.
    """
    spent = min(max(spent, 0.0), 1.0)
    if spent < config.warmup:
        return config.lr * _rise(config, spent / config.warmup)
    if config.schedule == "step":
        passed = sum(spent >= milestone for milestone in config.lr_milestones)
        return config.lr * config.lr_decay**passed
    if config.schedule == "constant":
        return config.lr
    share = (spent - config.warmup) / max(1.0 - config.warmup, 1e-12)
    left = 1.0 - share if config.schedule == "linear" else _half_cosine(1.0 - share)
    return config.lr * (config.final_lr + (1.0 - config.final_lr) * left)


def _rise(config: TrainingConfig, share: float) -> float:
    """Of the peak, after this share of the warm-up."""
    if config.schedule == "one-cycle":
        return ONE_CYCLE_START + (1.0 - ONE_CYCLE_START) * _half_cosine(share)
    return max(share, 1e-3)


def _half_cosine(share: float) -> float:
    """From 0 to 1 as the share is."""
    return 0.5 * (1.0 - math.cos(math.pi * share))
