"""Stop training after a signal, between two steps and in all processes at the same step."""

from __future__ import annotations

from recurra.errors import TrainingInterrupted
from recurra.runtime.signals import SIGNAL_GRACE_SECONDS
from recurra.training.callbacks.callback import Callback
from recurra.training.session import TrainingSession


class SignalHandling(Callback):
    """Callback that raises `TrainingInterrupted` before the next step if a signal is pending."""

    def start(self, session: TrainingSession) -> None:
        """Register a message that is shown when the first signal arrives."""
        session.context.signals.on_first = lambda: session.context.progress.message(
            "a checkpoint will be saved after this step; to stop at once, send the signal again"
            f" after {SIGNAL_GRACE_SECONDS:.0f} s"
        )

    def before_step(self, session: TrainingSession) -> None:
        """Raise an exception if a signal is pending in any process.

        Raises:
            TrainingInterrupted: a signal is pending.
        """
        if session.context.processes.count == 1:
            session.context.signals.raise_if_received()
        elif session.stop_signal:
            raise TrainingInterrupted(session.stop_signal)
