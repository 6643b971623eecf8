"""Enter the next stage of the batch schedule when the budget has reached it."""

from __future__ import annotations

from recurra.training.callbacks.callback import Callback
from recurra.training.session import TrainingSession


class BatchGrowth(Callback):
    """Callback that continues with larger batches when a new stage begins; see `batch_schedule`."""

    def before_step(self, session: TrainingSession) -> None:
        """Enter the stage of the current progress if it is a new one."""
        if session.data.grow(session.state, session.fraction):
            session.restart_batches()
