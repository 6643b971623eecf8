"""Record a failed step, and return to the checkpoint of the last report if `on_nan` is rollback."""

from __future__ import annotations

from recurra.errors import NonFiniteError
from recurra.training.callbacks.callback import Callback
from recurra.training.callbacks.checkpointing import Checkpointing
from recurra.training.failures import describe_failure
from recurra.training.session import StepFailedError, TrainingSession

MAX_ROLLBACKS = 3


class Rollback(Callback):
    """Callback that returns to the last report with half the learning rate.

    It does so at most `MAX_ROLLBACKS` times in a run.

    Args:
        checkpointing: the checkpoints to return to.
    """

    def __init__(self, checkpointing: Checkpointing) -> None:
        self._checkpointing = checkpointing

    def recover(self, session: TrainingSession, failure: StepFailedError) -> bool:
        """Record the batch of a failed step, and roll back if `on_nan` is rollback.

        Returns:
            True.

        Raises:
            NonFiniteError: `on_nan` is not rollback, or there were `MAX_ROLLBACKS` rollbacks.
        """
        rollbacks, pending = session.state.rollbacks, failure.pending
        record = describe_failure(failure, session, rollbacks)
        where = f"after update {pending.step}"
        if pending.batch is not None:
            where = f"before update {pending.step + 1}"
        description = f"{where}: {failure}"
        rolls_back = session.config.on_nan == "rollback" and rollbacks < MAX_ROLLBACKS
        if rolls_back:
            self._roll_back(session, description)
        if session.context.processes.is_first:
            session.store.append_failure(record)
        if not rolls_back:
            tried = f" after {rollbacks} rollbacks" if rollbacks else ""
            raise NonFiniteError(
                f"training stopped{tried} {description}; try a smaller --lr (it is {pending.lr:g});"
                f" the batch is recorded in {session.store.failures}"
            ) from failure
        session.is_between_steps = True
        return True

    def _roll_back(self, session: TrainingSession, description: str) -> None:
        state, seconds = session.state, session.budget.clock.seconds()
        rollbacks, scale = state.rollbacks + 1, state.lr_scale / 2
        session.discard_pending()
        self._checkpointing.roll_back(session)
        state = session.state
        session.data.enter(state.stage)
        session.restart_batches()
        state.rollbacks, state.lr_scale = rollbacks, scale
        session.timing.seconds, session.timing.began = seconds, session.budget.began
        session.share_progress()
        session.context.progress.message(
            f"{description}; back to step {state.step:,} with half the learning rate"
            f" ({session.learning_rate():.3g} now), rollback {rollbacks} of {MAX_ROLLBACKS}"
        )
