"""Early stopping: end training when the validation loss has not improved for several reports."""

from __future__ import annotations

from recurra.training.callbacks.callback import Callback
from recurra.training.session import TrainingSession


class EarlyStopping(Callback):
    """Stop after `patience` reports in a row without a better validation loss.

    Args:
        patience: number of reports; None never stops.
    """

    def __init__(self, patience: int | None) -> None:
        self._patience = patience

    def should_stop(self, session: TrainingSession) -> bool:
        """Return whether the last `patience` reports brought no improvement."""
        return self._patience is not None and session.state.reports_since_best >= self._patience
