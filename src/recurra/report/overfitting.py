"""Detect overfitting from the recorded losses.

The validation loss decides: a low loss on the training text does not generalise by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

OR = ", or that part is of another kind"
"""The losses cannot tell an end of the text that is unlike the rest (an index, a licence)."""
LEAST_RISE = 0.02
"""Of the validation loss in nats, above its usual wavering from report to report."""
LARGE_GAP = 0.4
"""Between the two losses in nats; dropout, which raises the training loss alone, hides some."""


def describe_overfitting(records: Sequence[dict[str, Any]]) -> str | None:
    """Return a sentence for the user, or None.

    Args:
        records: lines of metrics.jsonl.
    """
    known = [record for record in records if record["val_nats"] is not None]
    if not known:
        return None
    best, last = min(known, key=lambda record: record["val_nats"]), known[-1]
    kept = f"kept are the weights of step {best['step']:,}"
    rise = last["val_nats"] - best["val_nats"]
    if rise > LEAST_RISE and last["train_nats"] < best["train_nats"]:
        return (
            f"overfit   from step {best['step']:,} on the loss on the text it learns fell from"
            f" {best['train_nats']:.2f} to {last['train_nats']:.2f} nats, and on the held-out part"
            f" it rose from {best['val_nats']:.2f} to {last['val_nats']:.2f}: it memorised{OR};"
            f" {kept}"
        )
    if best["val_nats"] - best["train_nats"] > LARGE_GAP:
        return (
            f"overfit   {best['train_nats']:.2f} nats on the text it learned, but"
            f" {best['val_nats']:.2f} on the held-out part: it memorised{OR}. Only the second tells"
            " how well it does on other text; more text would help most"
        )
    return None
