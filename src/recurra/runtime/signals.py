"""Handle SIGINT, SIGTERM and SIGHUP at a safe point between two training steps.

Outside the training loop a signal stops the work at once. Inside, it is noted, and the loop obeys
between two updates; while something is written, it waits. Knows nothing of what is interrupted.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from recurra.errors import TrainingInterrupted

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
"""The signals that are obeyed; a closed terminal's is not Windows'."""

PATIENCE = 5.0
"""Grace period in seconds; a later signal no longer waits for the end of a step."""


class StopSignals:
    """The signals that came, and what the next one does.

    Attributes: `received`, the number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.on_first: Callable[[], None] = lambda: None
        self._since = 0.0
        self._deferred = False
        self._protected = False
        self._closed = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal is only noted; one that comes `PATIENCE` later raises at once."""
        with self._set(deferred=True, protected=False):
            yield

    @contextmanager
    def protected(self) -> Iterator[None]:
        """Inside, signals are noted however often they come."""
        with self._set(deferred=True, protected=True):
            yield

    @contextmanager
    def obeyed_at_once(self) -> Iterator[None]:
        """Inside, a signal raises at once, and so does one that came before."""
        with self._set(deferred=False, protected=False):
            self.obey()
            yield

    def obey(self) -> None:
        """Raise if a signal was noted.

        Raises:
            TrainingInterrupted: with the signal's number.
        """
        if self.received is not None:
            raise TrainingInterrupted(self.received)

    def close(self) -> None:
        """Ignore signals from here on, because the work is ending already."""
        self._closed = True

    def note(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._closed:
            return
        if self.received is None:
            self.received, self._since = signum, time.monotonic()
            if not self._deferred:
                raise TrainingInterrupted(signum)
            self.on_first()
        elif not self._protected and time.monotonic() - self._since > PATIENCE:
            # Earlier signals are ignored so that the save in progress can finish.
            raise TrainingInterrupted(signum)

    @contextmanager
    def _set(self, *, deferred: bool, protected: bool) -> Iterator[None]:
        before = self._deferred, self._protected
        self._deferred, self._protected = deferred, protected
        try:
            yield
        finally:
            self._deferred, self._protected = before


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handle the signals inside; a signal that was ignored before (nohup) stays ignored.

    Signals reach the main thread alone: in another one nothing is handled.
    """
    signals = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    # A handler that was not set from Python reads as None and could not be put back.
    before = {
        number: handler
        for number in SIGNALS
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    for number in before:
        signal.signal(number, signals.note)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
