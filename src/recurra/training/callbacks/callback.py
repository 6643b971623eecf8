"""The interface of callbacks, which act between two steps of the training loop."""

from __future__ import annotations

from recurra.training.session import StepFailedError, TrainingSession


class Callback:
    """Something that the training loop does between two steps; by default nothing.

    The loop calls its callbacks in a fixed order, and asks between any two of them whether training
    is done. With several processes every one calls the same methods at the same step.
    """

    def start(self, session: TrainingSession) -> None:
        """Act before the first step of this process, after a checkpoint was loaded."""

    def before_step(self, session: TrainingSession) -> None:
        """Act before a step, if it is time to."""

    def should_stop(self, session: TrainingSession) -> bool:
        """Return whether training is done although the budget is not spent."""
        return False

    def recover(self, session: TrainingSession, failure: StepFailedError) -> bool:
        """Act after a step that failed; return whether training can continue."""
        return False

    def finish(self, session: TrainingSession) -> None:
        """Act when training is done."""
