"""Record a step that failed, and return to the checkpoint of the last report if that is wanted."""

from __future__ import annotations

from recurra.errors import NonFiniteError
from recurra.training.callbacks.callback import Callback
from recurra.training.callbacks.checkpointing import Checkpointing
from recurra.training.failures import describe_failure
from recurra.training.session import StepFailedError, TrainingSession

MAX_ROLLBACKS = 3


class Rollback(Callback):
    """Return to the last report with half the learning rate, three times at most.

    Args:
        checkpointing: the checkpoints to return to.
    """

    def __init__(self, checkpointing: Checkpointing) -> None:
        self._checkpointing = checkpointing

    def recover(self, session: TrainingSession, failure: StepFailedError) -> bool:
        """Record the batch of a failed step, and roll back if `on_nan` asks for it.

        Raises:
            NonFiniteError: it does not, or three rollbacks did not help.
        """
        rollbacks, pending = session.state.rollbacks, failure.pending
        record = describe_failure(failure, session, rollbacks)
        where = f"after update {pending.step}"
        if pending.batch is not None:
            where = f"before update {pending.step + 1}"
        what = f"{where}: {failure}"
        again = session.config.on_nan == "rollback" and rollbacks < MAX_ROLLBACKS
        if again:
            self._roll_back(session, what)
        if session.context.processes.is_first:
            session.directory.append_failure(record)
        if not again:
            tried = f" after {rollbacks} rollbacks" if rollbacks else ""
            raise NonFiniteError(
                f"training stopped{tried} {what}; try a smaller --lr (it is {pending.lr:g});"
                f" the batch is recorded in {session.directory.failures}"
            ) from failure
        session.is_between_steps = True
        return True

    def _roll_back(self, session: TrainingSession, what: str) -> None:
        state, seconds = session.state, session.budget.clock.seconds()
        rollbacks, scale = state.rollbacks + 1, state.lr_scale / 2
        session.discard_pending()
        self._checkpointing.roll_back(session)
        state = session.state
        session.data.enter(state.stage)
        session.restart_batches()
        state.rollbacks, state.lr_scale = rollbacks, scale
        session.timing.seconds, session.timing.began = seconds, session.budget.began
        session.agree()
        session.context.progress.message(
            f"{what}; back to step {state.step:,} with half the learning rate"
            f" ({session.learning_rate():.3g} now), rollback {rollbacks} of {MAX_ROLLBACKS}"
        )
