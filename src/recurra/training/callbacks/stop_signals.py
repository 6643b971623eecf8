"""Stop training after a signal, between two steps and in all processes at the same step."""

from __future__ import annotations

from recurra.errors import TrainingInterrupted
from recurra.runtime.signals import PATIENCE
from recurra.training.callbacks.callback import Callback
from recurra.training.session import TrainingSession


class SignalHandling(Callback):
    """Raise `TrainingInterrupted` before the next step when a signal is pending."""

    def start(self, session: TrainingSession) -> None:
        """Tell the user what happens when a signal arrives."""
        session.context.signals.on_first = lambda: session.context.progress.message(
            f"finishing this step, then saving (again after {PATIENCE:.0f} s: stop at once)"
        )

    def before_step(self, session: TrainingSession) -> None:
        """Obey a pending signal.

        Raises:
            TrainingInterrupted: there is one.
        """
        if session.context.processes.count == 1:
            session.context.signals.obey()
        elif session.stop_signal:
            raise TrainingInterrupted(session.stop_signal)
