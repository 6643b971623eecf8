"""Progress through the training budget of epochs, steps or minutes, from 0 to 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from recurra.config import TrainingConfig
from recurra.runtime.clock import Clock

DEFAULT_MINUTES = 2.0


@dataclass
class Budget:
    """The one budget of a run.

    Attributes:
        config: where epochs, steps or minutes stand; none of them means `DEFAULT_MINUTES`.
        epoch_length: batches in an epoch.
        clock: measures the minutes.
        reserve: seconds kept for the last evaluation and save; the trainer learns it as it goes.
        began: when the first update was due, in seconds of the clock. What passed before is not
            spent, only no longer there: a learning rate that warms up must begin at its beginning.
    """

    config: TrainingConfig
    epoch_length: int
    clock: Clock
    reserve: float = 0.0
    began: float = 0.0

    @property
    def minutes(self) -> float | None:
        """The budget in minutes, if it is one."""
        if self.config.epochs is None and self.config.steps is None:
            return self.config.minutes or DEFAULT_MINUTES
        return None

    def spent(self, step: int, epochs: float) -> float:
        """The share spent after `step` updates, which read the text so often (0 to 1)."""
        if self.minutes is not None:
            available = self.minutes * 60 - self.reserve - self.began
            share = (self.clock.seconds() - self.began) / max(available, 1e-9)
            most = self.config.max_epochs
            return share if most is None else max(share, epochs / most)
        if self.config.steps is not None:
            return step / self.config.steps
        assert self.config.epochs is not None
        return epochs / self.config.epochs

    def seconds_left(self, spent: float) -> float:
        """How long it will still take, by the share that is spent; infinite before the start."""
        seconds = self.clock.seconds()
        left = seconds / spent * (1.0 - spent) if spent > 0 else math.inf
        return left if self.minutes is None else min(left, self.minutes * 60 - seconds)

    def total_seconds(self, seconds_per_step: float) -> float:
        """How long all of it will take, an estimate."""
        learning = self.total_steps(seconds_per_step) * seconds_per_step
        if self.minutes is None:
            return learning
        whole = self.minutes * 60
        limited = self.config.max_epochs is not None
        return min(whole, self.clock.seconds() + learning) if limited else whole

    def total_steps(self, seconds_per_step: float) -> int:
        """Updates that the budget buys, an estimate where it is in minutes."""
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
