"""Batches that grow: many small updates while the gradient is large, few exact ones at the end.

Smith et al. 2018, "Don't Decay the Learning Rate, Increase the Batch Size", for the rows; short
windows first, for the steps, cost less while there is little to learn from what lies far back. The
budget is cut into stages of equal shares; from one to the next, sizes double until all are full.
"""

from __future__ import annotations

import dataclasses

from recurra.config import TrainingConfig


def stage_at(config: TrainingConfig, spent: float) -> int:
    """The stage in which the share `spent` of the budget lies; the first is 0."""
    last = max(config.batch_growth, config.window_growth).bit_length() - 1
    return min(int(spent * (last + 1)), last)


def at_stage(config: TrainingConfig, stage: int) -> TrainingConfig:
    """The settings with the sizes of this stage."""
    return dataclasses.replace(
        config,
        batch_size=config.batch_size // max(config.batch_growth >> stage, 1),
        num_steps=config.num_steps // max(config.window_growth >> stage, 1),
        batch_growth=1,
        window_growth=1,
    )
