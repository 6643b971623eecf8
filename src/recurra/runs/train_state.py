"""The state of the training loop that every checkpoint contains.

`TrainState` is identical in every run of the same text, settings and seed. `Timing` depends on the
clock and differs between runs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from recurra.config.checks import require_types
from recurra.errors import ConfigError

Record = TypeVar("Record")


MAX_VALIDATION_TOKENS = 2**18
"""Maximum number of validation tokens in an evaluation during training; `recurra eval` uses all."""


@dataclass
class RunningMean:
    """Sums since the last evaluation, and the latest learning rate and gradient norm.

    Attributes:
        nats: sum of the training loss over all tokens.
        tokens: number of tokens.
        grad_norm: gradient norm of the latest update.
        lr: learning rate of the latest update.
    """

    nats: float = 0.0
    tokens: int = 0
    grad_norm: float = 0.0
    lr: float = 0.0

    def add(self, nats: float, tokens: int, grad_norm: float, lr: float) -> None:
        """Add an update with a total loss of `nats` over `tokens` tokens."""
        self.nats += nats
        self.tokens += tokens
        self.grad_norm, self.lr = grad_norm, lr

    @property
    def mean_nats(self) -> float:
        """Mean loss in nats per token."""
        return self.nats / max(self.tokens, 1)


@dataclass
class TrainState:
    """Position in the data, counters and the best loss so far.

    Attributes:
        step: number of updates.
        epoch: index of the current epoch.
        position: number of batches trained in the current epoch.
        stage: index of the current stage of `training/batch_schedule.py`.
        skipped: sum of the epoch fractions that were skipped when a stage began.
        tokens: number of tokens trained.
        reports: number of twentieths of the budget completed at the last evaluation.
        last_report: step of the last evaluation.
        last_sample: step of the last sample.
        best_loss: lowest validation loss so far, or the latest training loss if there is no
            validation part. None before the first evaluation.
        best_step: step of `best_loss`.
        reports_since_best: number of evaluations since `best_step`.
        rollbacks: number of returns to an earlier checkpoint.
        lr_scale: factor of the learning rates after rollbacks.
        finished: whether training has finished.
        since_report: sums since the last evaluation.
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
        """Return the number of epochs trained so far, each of `epoch_length` batches."""
        # An epoch can have more batches than `epoch_length`, which is an estimate.
        return self.epoch - self.skipped + min(self.position / epoch_length, 1.0)

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Return the state that `dataclasses.asdict` converted to `values`.

        Raises:
            ConfigError: if a field is missing, unknown, negative or of another type.
        """
        if not isinstance(values, dict):
            raise ConfigError("memory is not a JSON object")
        mean = _checked(RunningMean, values.get("since_report"), "since_report")
        return _checked(cls, {**values, "since_report": mean}, "memory")


@dataclass
class Timing:
    """Times of a run in seconds, which affect only runs with a time budget.

    Attributes:
        seconds: time since training began, without interruptions.
        updates: time spent in updates since the last evaluation.
        reserve: time reserved for the last evaluation.
        next_report: earliest time of the next evaluation, measured like `seconds`.
        began: start time of the first update, measured like `seconds`.
        validation_tokens: maximum number of tokens in an evaluation, from its measured speed. It
            stays the same throughout a run, so that all validation losses are comparable.
    """

    seconds: float = 0.0
    updates: float = 0.0
    reserve: float = 0.0
    next_report: float = 0.0
    began: float = 0.0
    validation_tokens: int = MAX_VALIDATION_TOKENS

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Return the times that `dataclasses.asdict` converted to `values`.

        Raises:
            ConfigError: if a field is missing, unknown, negative or of another type.
        """
        if isinstance(values, dict):
            # Checkpoints of 0.1 do not have this field.
            values = {"validation_tokens": MAX_VALIDATION_TOKENS, **values}
        return _checked(cls, values, "timing")


def _checked(kind: type[Record], values: Any, name: str) -> Record:
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, dict) or values.keys() != names:
        raise ConfigError(f"{name} must have exactly the fields {sorted(names)}")
    built = kind(**values)
    require_types(built)
    for field_name, value in values.items():
        if isinstance(value, (int, float)) and not value >= 0:
            raise ConfigError(f"{field_name} is {value!r}; it must not be negative")
    return built
