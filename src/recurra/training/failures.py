"""Record of the batch that produced a NaN or infinite loss, for debugging."""

from __future__ import annotations

from typing import Any

from recurra.training.session import StepFailedError, TrainingSession

SHOWN_ROWS, SHOWN_TOKENS = 64, 80
"""Maximum number of rows, and of tokens per row, that are recorded as text."""


def describe_failure(
    failure: StepFailedError, session: TrainingSession, rollbacks: int
) -> dict[str, Any]:
    """Return a record for failures.jsonl.

    The start of every row is recorded, and the text of at most `SHOWN_ROWS` rows.

    Args:
        failure: the error of the failed step.
        session: the training, whose dataset contains the rows of the batch.
        rollbacks: number of earlier rollbacks.
    """
    pending = failure.pending
    record: dict[str, Any] = {
        "step": pending.step,
        "epoch": pending.epoch,
        "batch": pending.position,
        "reason": str(failure),
        "lr": pending.lr,
        "rollbacks": rollbacks,
    }
    if (batch := pending.batch) is not None:
        record["num_steps"] = batch.num_steps
        record["starts"] = batch.starts.tolist()
        length = min(batch.num_steps, SHOWN_TOKENS)
        ids, vocabulary = session.dataset.train, session.dataset.vocabulary
        shown = batch.starts[:SHOWN_ROWS].tolist()
        record["text"] = [vocabulary.decode(ids[start : start + length]) for start in shown]
    return record
