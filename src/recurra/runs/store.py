"""The storage of a run, as the training loop uses it; `RunDirectory` implements it on disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from recurra.io.tensors import Tensors, TensorSpec
from recurra.model.recurrent_lm import RecurrentLM
from recurra.runs.checkpoint import CheckpointRecord
from recurra.runs.checkpoint_store import Cost
from recurra.runs.history import HistoryMark


def best_record(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the metrics that belong to the best weights, or {} before the first evaluation.

    This is the record with the lowest validation loss, or the last record if there is no validation
    part.
    """
    validated = [record for record in records if record["val_nats"] is not None]
    if validated:
        return min(validated, key=lambda record: float(record["val_nats"]))
    return records[-1] if records else {}


class Checkpoints(Protocol):
    """The checkpoints of a run."""

    def path_of(self, name: str) -> Path:
        """Return the path of a checkpoint, for messages."""

    def names(self) -> list[str]:
        """Return the names of all checkpoints, including damaged ones, the oldest first."""

    def write(self, name: str, files: Mapping[str, bytes]) -> Cost:
        """Write a checkpoint and verify it by reading it back.

        Raises:
            OSError, RunError: the checkpoint could not be written; the others are unchanged.
        """

    def verify(self, name: str) -> None:
        """Check that the files of a checkpoint are those that were written.

        Raises:
            RunError: a file is missing or damaged.
        """

    def read_record(self, name: str) -> CheckpointRecord:
        """Return the state of the training loop that a checkpoint contains.

        Raises:
            RunError: a file is missing or damaged.
        """

    def read_state(
        self, name: str, specs: Mapping[str, TensorSpec], optional: Collection[str]
    ) -> Tensors:
        """Return the tensors of a checkpoint.

        Args:
            name: the name of the checkpoint.
            specs: the expected dtype and shape of each tensor.
            optional: names of tensors that may be missing.

        Raises:
            RunError: the file is missing or damaged, or does not contain these tensors.
        """

    def read_file(self, name: str, file: str) -> bytes | None:
        """Return the contents of a file of a checkpoint, or None if there is no such file."""

    def keep_only(self, names: Collection[str]) -> None:
        """Delete all checkpoints but these."""


class RunStore(Protocol):
    """Storage of a training run: metrics, samples, failures, best weights and checkpoints."""

    @property
    def path(self) -> Path:
        """The path of the run, for messages."""

    @property
    def failures(self) -> Path:
        """The path of the record of failed steps, for messages."""

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run."""

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append the metrics of an evaluation."""

    def append_sample(self, record: dict[str, Any]) -> None:
        """Append a generated sample."""

    def append_failure(self, record: dict[str, Any]) -> None:
        """Append the description of a failed step."""

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return all metrics.

        Raises:
            RunError: they are damaged.
        """

    def mark_histories(self) -> dict[str, HistoryMark]:
        """Make metrics, samples and failures durable; return their lengths by file name."""

    def cut_histories(self, marks: Mapping[str, HistoryMark | None]) -> list[str]:
        """Cut off what was appended after these marks; None removes a file.

        Returns:
            Messages about damaged files, of which only a part could be kept.
        """

    def replace_histories(self, files: Mapping[str, bytes | None]) -> None:
        """Replace these files by the given contents; None removes a file."""

    def remove_histories(self) -> None:
        """Remove metrics, samples, failures and the points of the loss curve."""

    def write_losses(self, points: Sequence[dict[str, Any]]) -> None:
        """Replace the points of the loss curve."""

    def read_losses(self) -> list[dict[str, Any]]:
        """Return the points of the loss curve; none for runs of earlier versions.

        Raises:
            RunError: they are damaged.
        """

    def write_weights(self, data: bytes) -> None:
        """Replace the best weights by the contents of a weights file."""

    def load_best_weights(self, model: RecurrentLM) -> None:
        """Load the best weights into a model; without any, the model is unchanged.

        Raises:
            RunError: the weights are damaged or do not match the model.
        """
