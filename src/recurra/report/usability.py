"""Report a text or a budget that is too small for a usable model, and suggest a remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recurra.config import TrainingConfig
from recurra.config.training import BUDGETS

MIN_TRAIN_TOKENS = 10_000
"""Number of training tokens below which a text is too short to learn words from."""
MIN_STEPS = 500
"""Number of updates below which a budget is considered too small."""
MIN_GAIN = 0.15
"""A model is usable if its loss is lower than that of token frequencies by this fraction. The loss
of a character model that generates words is lower by a third or more."""
STEPS_FACTOR, MINUTES_FACTOR = 10, 2
"""Factors by which a budget in steps or epochs, or in minutes, is increased in the suggestion."""
SUGGESTED_MINUTES = 2.0
"""Minimum number of minutes that is suggested."""


_UNITS = {"char": "characters", "byte": "bytes", "word": "words"}


def describe_short_text(num_train: int, kind: str) -> str | None:
    """Return a note about a text that is too short, or None if it is long enough.

    Args:
        num_train: number of tokens in the training part.
        kind: the kind of the tokens.
    """
    if num_train >= MIN_TRAIN_TOKENS:
        return None
    units = _UNITS.get(kind, "tokens")
    return (
        f"note: {num_train:,} {units} for training are too few for a model that generates"
        f" meaningful text; use at least {MIN_TRAIN_TOKENS:,} (a million is better), or fine-tune a"
        " model that was trained on a longer text (--from; from Python: base=...)"
    )


@dataclass(frozen=True)
class Outcome:
    """The result of a training run.

    Attributes:
        record: the record of metrics.jsonl with the lowest loss.
        frequency_nats: the loss of predicting each token by its frequency in the training part.
        num_train: number of tokens in the training part.
        steps: number of updates.
        path: the run, for the suggested command.
    """

    record: dict[str, Any]
    frequency_nats: float
    num_train: int
    steps: int
    path: str

    @property
    def nats(self) -> float:
        """The validation loss, or the training loss without validation."""
        validated = self.record["val_nats"]
        return float(self.record["train_nats"] if validated is None else validated)


def describe_unusable(outcome: Outcome, config: TrainingConfig) -> str | None:
    """Return a message about a model that generates noise, or None if the model is usable."""
    if outcome.nats <= (1.0 - MIN_GAIN) * outcome.frequency_nats:
        return None
    return (
        f"unusable  the loss is {outcome.nats:.2f} nats, and predicting each token by its frequency"
        f" alone gives {outcome.frequency_nats:.2f}: the model generates noise."
        f" {_remedy(outcome, config)}"
    )


def _remedy(outcome: Outcome, config: TrainingConfig) -> str:
    if outcome.num_train < MIN_TRAIN_TOKENS:
        return (
            f"The text has only {outcome.num_train:,} tokens for training; use a longer text, or"
            " fine-tune a model that was trained on a longer text (--from; from Python: base=...)"
        )
    if outcome.steps < MIN_STEPS:
        steps = f"{outcome.steps:,} step{'s' if outcome.steps != 1 else ''}"
        return (
            f"The budget sufficed for {steps}; train longer, for example recurra train --resume"
            f" {outcome.path} {_greater_budget(config)}"
        )
    return f"Try a smaller --lr (it is {config.lr:g}), or a larger --hidden-size"


def _greater_budget(config: TrainingConfig) -> str:
    unit = next((name for name in BUDGETS if getattr(config, name) is not None), "minutes")
    amount = getattr(config, unit) or SUGGESTED_MINUTES
    if unit == "minutes":
        return f"--minutes {max(SUGGESTED_MINUTES, MINUTES_FACTOR * amount):g}"
    increased = STEPS_FACTOR * amount
    return f"--{unit} {increased:g}" if unit == "epochs" else f"--{unit} {increased}"
