"""Detect overfitting from the recorded losses.

A low training loss alone does not show that the model generalizes, so the validation loss is the
criterion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CAUSE = "the model overfits, or the validation split differs in kind from the training split"
"""The losses do not distinguish the two. The end of a text can be an index or a licence."""
MIN_RISE_NATS = 0.02
"""Minimum rise of the validation loss; smaller changes between evaluations are noise."""
MAX_GAP_NATS = 0.4
"""Maximum gap between validation and training loss. Dropout raises only the training loss, so the
actual gap can be larger."""


def describe_overfitting(records: Sequence[dict[str, Any]]) -> str | None:
    """Return a message about overfitting, or None if the losses show none.

    Args:
        records: lines of metrics.jsonl.
    """
    known = [record for record in records if record["val_nats"] is not None]
    if not known:
        return None
    best, last = min(known, key=lambda record: record["val_nats"]), known[-1]
    rise = last["val_nats"] - best["val_nats"]
    if rise > MIN_RISE_NATS and last["train_nats"] < best["train_nats"]:
        return (
            f"overfit   since step {best['step']:,} the training loss fell from"
            f" {best['train_nats']:.2f} to {last['train_nats']:.2f} nats, while the validation loss"
            f" rose from {best['val_nats']:.2f} to {last['val_nats']:.2f}: {CAUSE}; keeping the"
            f" weights of step {best['step']:,}"
        )
    if best["val_nats"] - best["train_nats"] > MAX_GAP_NATS:
        return (
            f"overfit   the training loss is {best['train_nats']:.2f} nats, but the validation loss"
            f" is {best['val_nats']:.2f}: {CAUSE}. The validation loss estimates the performance on"
            " other text; more training text would help most"
        )
    return None
