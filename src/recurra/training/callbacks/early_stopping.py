"""Early stopping: end training when the validation loss has not improved for several reports."""

from __future__ import annotations

from recurra.training.callbacks.callback import Callback
from recurra.training.session import TrainingSession


class EarlyStopping(Callback):
    """Callback that stops training after `patience` consecutive reports without improvement.

    Args:
        patience: number of reports; None never stops.
    """

    def __init__(self, patience: int | None) -> None:
        self._patience = patience

    def should_stop(self, session: TrainingSession) -> bool:
        """Return whether the loss has not improved in the last `patience` reports."""
        return self._patience is not None and session.state.reports_since_best >= self._patience
