"""Record of the batch that produced a NaN or infinite loss, for debugging."""

from __future__ import annotations

from typing import Any

from recurra.data.batches import Batch, Ids
from recurra.errors import NonFiniteError
from recurra.runs.train_state import Memory
from recurra.text.vocabulary import Vocabulary

SHOWN_ROWS, SHOWN_TOKENS = 64, 80
"""How much of the batch is written out; where each row begins is written of all."""


def describe_failure(
    error: NonFiniteError,
    batch: Batch | None,
    memory: Memory,
    lr: float,
    ids: Ids,
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    """A line of failures.jsonl.

    Args:
        batch: None when it was the validation that failed.
        memory: before the update that was not made.
        lr: the learning rate it would have been made with.
        ids: the training part, in which the rows of the batch lie.
    """
    record: dict[str, Any] = {
        "step": memory.step,
        "epoch": memory.epoch,
        "batch": memory.position,
        "reason": str(error),
        "lr": lr,
        "rollbacks": memory.rollbacks,
    }
    if batch is not None:
        shown = batch.starts[:SHOWN_ROWS].tolist()
        record["num_steps"] = batch.ids.shape[1]
        record["starts"] = batch.starts.tolist()
        length = min(batch.ids.shape[1], SHOWN_TOKENS)
        record["text"] = [vocabulary.decode(ids[start : start + length]) for start in shown]
    return record
