"""The learning rate as a function of how much of the budget is spent; knows no optimiser."""

from __future__ import annotations

import math

from recurra.config import TrainingConfig


def learning_rate(config: TrainingConfig, spent: float) -> float:
    """The learning rate when the share `spent` (0 to 1) of the budget is used up.

    It rises linearly during the first `warmup` share; then it stays (constant), falls by
    `lr_decay` at each milestone (step), or follows half a cosine down to `final_lr` times the peak
    (cosine: Loshchilov and Hutter 2017, without restarts). Budgets in epochs, steps and minutes
    all work, since only the share counts.
    """
    spent = min(max(spent, 0.0), 1.0)
    if spent < config.warmup:
        return config.lr * max(spent / config.warmup, 1e-3)
    if config.schedule == "step":
        passed = sum(spent >= milestone for milestone in config.lr_milestones)
        return config.lr * config.lr_decay**passed
    if config.schedule == "cosine":
        share = (spent - config.warmup) / max(1.0 - config.warmup, 1e-12)
        return config.lr * (
            config.final_lr + (1.0 - config.final_lr) * 0.5 * (1.0 + math.cos(math.pi * share))
        )
    return config.lr
