"""The state of the training loop that every checkpoint contains.

`TrainState` is the same in every run of the same text, settings and seed. `Timing` depends on the
clock and differs from run to run.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from recurra.config.checks import require_types
from recurra.errors import ConfigError

Record = TypeVar("Record")


@dataclass
class RunningMean:
    """Sums since the last report, and the latest learning rate and gradient norm."""

    nats: float = 0.0
    tokens: int = 0
    grad_norm: float = 0.0
    lr: float = 0.0

    def add(self, nats: float, tokens: int, grad_norm: float, lr: float) -> None:
        """Count one update, whose loss summed to `nats` over its tokens."""
        self.nats += nats
        self.tokens += tokens
        self.grad_norm, self.lr = grad_norm, lr

    @property
    def mean_nats(self) -> float:
        """Nats per token."""
        return self.nats / max(self.tokens, 1)


@dataclass
class TrainState:
    """Position in the data, counters, the best so far.

    `reports` counts the twentieths of the budget that were reported, `position` the batches done in
    the current epoch, `stage` that of `batch_schedule.py`, `skipped` the sum of the epoch fractions
    that were left out when a stage began; `last_report` and `last_sample` are the steps of the last
    of each. After `rollbacks` returns to an earlier checkpoint, learning rates are
    multiplied by `lr_scale`.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    stage: int = 0
    skipped: float = 0.0
    tokens: int = 0
    reports: int = 0
    last_report: int = 0
    last_sample: int = 0
    best_loss: float | None = None
    best_step: int = 0
    reports_since_best: int = 0
    rollbacks: int = 0
    lr_scale: float = 1.0
    finished: bool = False
    since_report: RunningMean = field(default_factory=RunningMean)

    def epochs(self, epoch_length: int) -> float:
        """Return the number of epochs, each of so many batches."""
        # An epoch may hold a batch more than its usual length; it ends when it ends.
        return self.epoch - self.skipped + min(self.position / epoch_length, 1.0)

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The inverse of `dataclasses.asdict`.

        Raises:
            ConfigError: a field is missing, unknown, or of another type.
        """
        if not isinstance(values, dict):
            raise ConfigError("memory is no object of JSON")
        mean = _checked(RunningMean, values.get("since_report"), "since_report")
        return _checked(cls, {**values, "since_report": mean}, "memory")


@dataclass
class Timing:
    """Times of a run; they do not affect a run whose budget is in epochs or steps.

    `seconds` since the training began, interruptions left out; `updates`, those of them spent in
    updates since the last report; `reserve`, those kept for the last report; `next_report`, the
    earliest time of the next one; `began`, when the first update was due.
    """

    seconds: float = 0.0
    updates: float = 0.0
    reserve: float = 0.0
    next_report: float = 0.0
    began: float = 0.0

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The inverse of `dataclasses.asdict`; raises as `TrainState.from_dict`."""
        return _checked(cls, values, "timing")


def _checked(kind: type[Record], values: Any, name: str) -> Record:
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, dict) or values.keys() != names:
        raise ConfigError(f"{name} does not have the fields {sorted(names)}")
    built = kind(**values)
    require_types(built)
    for field_name, value in values.items():
        if isinstance(value, (int, float)) and not value >= 0:
            raise ConfigError(f"{field_name} is {value!r}; it must not be negative")
    return built
