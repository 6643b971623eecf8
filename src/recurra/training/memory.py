"""What the training loop remembers from step to step; goes into every checkpoint as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Tally:
    """Sums since the last report, and the latest learning rate and gradient norm."""

    nats: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    grad_norm: float = 0.0
    lr: float = 0.0

    def add(self, nats: float, tokens: int, seconds: float, grad_norm: float, lr: float) -> None:
        """Count one update, whose mean loss was `nats` per token."""
        self.nats += nats * tokens
        self.tokens += tokens
        self.seconds += seconds
        self.grad_norm, self.lr = grad_norm, lr

    @property
    def mean_nats(self) -> float:
        """Nats per token."""
        return self.nats / max(self.tokens, 1)

    @property
    def tokens_per_second(self) -> float:
        """Speed of the updates alone, without validation, samples and saving."""
        return self.tokens / max(self.seconds, 1e-9)


@dataclass
class Memory:
    """Position in the data, counters, the best so far.

    `reports` counts the twentieths of the budget that were reported, `position` the batches done in
    the current epoch; `last_sample` is the step of the last samples, `fingerprint` that of the text
    and the settings.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    reports: int = 0
    last_sample: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    reports_since_best: int = 0
    finished: bool = False
    fingerprint: str = ""
    since_report: Tally = field(default_factory=Tally)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`.

        Raises:
            TypeError, KeyError: a field is missing or unknown.
        """
        return cls(**{**values, "since_report": Tally(**values["since_report"])})
