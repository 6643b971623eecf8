"""The interface of callbacks, which act between two steps of the training loop."""

from __future__ import annotations

from recurra.training.session import StepFailedError, TrainingSession


class Callback:
    """Base class of callbacks, whose methods do nothing by default.

    The loop calls its callbacks in a fixed order, and checks before each of them whether training
    is done. With several processes, all of them call the same methods at the same step.
    """

    def start(self, session: TrainingSession) -> None:
        """Act before the first step of this process, after any checkpoint has been loaded."""

    def before_step(self, session: TrainingSession) -> None:
        """Act before a step."""

    def should_stop(self, session: TrainingSession) -> bool:
        """Return whether to stop training before the budget is spent."""
        return False

    def recover(self, session: TrainingSession, failure: StepFailedError) -> bool:
        """Act after a failed step, and return whether training can continue."""
        return False

    def finish(self, session: TrainingSession) -> None:
        """Act when training is done."""
