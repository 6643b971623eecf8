"""Record of the batch that produced a NaN or infinite loss, for debugging."""

from __future__ import annotations

from typing import Any

from recurra.training.session import StepFailedError, TrainingSession

SHOWN_ROWS, SHOWN_TOKENS = 64, 80
"""Rows and tokens of the batch that are written as text; the start of every row is written."""


def describe_failure(
    failure: StepFailedError, session: TrainingSession, rollbacks: int
) -> dict[str, Any]:
    """Return a line of failures.jsonl.

    Args:
        failure: the step, with where training stood before it.
        session: the training, with the text in which the rows of the batch are.
        rollbacks: earlier returns to a checkpoint.
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
        record["num_steps"] = batch.ids.shape[1]
        record["starts"] = batch.starts.tolist()
        length = min(batch.ids.shape[1], SHOWN_TOKENS)
        ids, vocabulary = session.dataset.train, session.dataset.vocabulary
        shown = batch.starts[:SHOWN_ROWS].tolist()
        record["text"] = [vocabulary.decode(ids[start : start + length]) for start in shown]
    return record
