"""Progress through the training budget of epochs, steps or minutes, from 0 to 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from recurra.config import TrainingConfig
from recurra.runtime.clock import Clock

DEFAULT_MINUTES = 2.0
"""The budget in minutes if no budget is given."""


@dataclass
class Budget:
    """The training budget of a run.

    Attributes:
        config: the configuration, with a budget in epochs, steps or minutes; without one, the
            budget is `DEFAULT_MINUTES`.
        epoch_length: number of batches in an epoch.
        clock: the clock of the run.
        reserve: seconds reserved for the last evaluation and checkpoint; updated after each report.
        began: time of the first step, in seconds of the clock. Progress through a time budget is 0
            at this time, so that the warm-up of the learning rate starts with the first step.
    """

    config: TrainingConfig
    epoch_length: int
    clock: Clock
    reserve: float = 0.0
    began: float = 0.0

    @property
    def minutes(self) -> float | None:
        """The budget in minutes, or None if it is in epochs or steps."""
        return self.minutes_of(self.config)

    @staticmethod
    def minutes_of(config: TrainingConfig) -> float | None:
        """Return the budget of a configuration in minutes, or None if it is in epochs or steps."""
        if config.epochs is None and config.steps is None:
            return config.minutes or DEFAULT_MINUTES
        return None

    def spent(self, step: int, epochs: float) -> float:
        """Return the fraction of the budget that is spent; it can exceed 1.

        Args:
            step: number of steps so far.
            epochs: number of epochs so far, which can be fractional.
        """
        if self.minutes is not None:
            available = self.minutes * 60 - self.reserve - self.began
            fraction = (self.clock.seconds() - self.began) / max(available, 1e-9)
            max_epochs = self.config.max_epochs
            return fraction if max_epochs is None else max(fraction, epochs / max_epochs)
        if self.config.steps is not None:
            return step / self.config.steps
        assert self.config.epochs is not None
        return epochs / self.config.epochs

    def seconds_left(self, spent: float) -> float:
        """Estimate the remaining time in seconds; infinite if `spent` is 0.

        Args:
            spent: fraction of the budget that is spent.
        """
        seconds = self.clock.seconds()
        left = seconds / spent * (1.0 - spent) if spent > 0 else math.inf
        return left if self.minutes is None else min(left, self.minutes * 60 - seconds)

    def total_seconds(self, seconds_per_step: float) -> float:
        """Estimate the duration of the whole training in seconds.

        Args:
            seconds_per_step: duration of a step.
        """
        training = self.total_steps(seconds_per_step) * seconds_per_step
        if self.minutes is None:
            return training
        available = self.minutes * 60
        is_limited = self.config.max_epochs is not None
        return min(available, self.clock.seconds() + training) if is_limited else available

    def total_steps(self, seconds_per_step: float) -> int:
        """Return the number of steps of the whole training, an estimate for a time budget.

        Args:
            seconds_per_step: duration of a step.
        """
        if self.minutes is not None:
            left = self.minutes * 60 - self.clock.seconds()
            steps = left / max(seconds_per_step, 1e-9)
            if self.config.max_epochs is not None:
                steps = min(steps, self.config.max_epochs * self.epoch_length)
            return max(int(steps), 1)
        if self.config.steps is not None:
            return self.config.steps
        assert self.config.epochs is not None
        return max(round(self.config.epochs * self.epoch_length), 1)
