"""Handle SIGINT, SIGTERM and SIGHUP at a safe point between two training steps.

Outside the training loop a signal raises `TrainingInterrupted` at once. Inside, the signal is
recorded, and the loop raises the exception between two steps. A signal that arrives after a grace
period raises it during a step, but not while a checkpoint is being written.
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
"""The signals that are handled; Windows has no SIGHUP."""

SIGNAL_GRACE_SECONDS = 5.0
"""Grace period in seconds; a signal that arrives later raises during the step."""


class StopSignals:
    """The first signal that was received, and how the next one is handled.

    Attributes:
        received: number of the first signal, or None.
        on_first: called when the first signal is deferred.
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
        """Record signals inside the context, without raising.

        A signal that arrives more than `SIGNAL_GRACE_SECONDS` after the first one raises at once.
        """
        with self._set(deferred=True, protected=False):
            yield

    @contextmanager
    def protected(self) -> Iterator[None]:
        """Record signals inside the context, without raising, however many arrive."""
        with self._set(deferred=True, protected=True):
            yield

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raise immediately for a signal inside the context, or on entry for an earlier signal."""
        with self._set(deferred=False, protected=False):
            self.raise_if_received()
            yield

    def raise_if_received(self) -> None:
        """Raise an exception if a signal was received.

        Raises:
            TrainingInterrupted: with the number of the signal.
        """
        if self.received is not None:
            raise TrainingInterrupted(self.received)

    def close(self) -> None:
        """Ignore all further signals, because training is already ending."""
        self._closed = True

    def note(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal; this is the handler that `signal.signal` receives.

        Raises:
            TrainingInterrupted: signals are not deferred, or the grace period is over.
        """
        if self._closed:
            return
        if self.received is None:
            self.received, self._since = signum, time.monotonic()
            if not self._deferred:
                raise TrainingInterrupted(signum)
            self.on_first()
        elif not self._protected and time.monotonic() - self._since > SIGNAL_GRACE_SECONDS:
            # A second signal within the grace period is ignored, so that a checkpoint can be saved.
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
    """Handle signals until the context ends.

    Signals that were ignored before, for example because of nohup, stay ignored. Python delivers
    signals only to the main thread; in other threads nothing is handled.
    """
    signals = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    # A handler that was not installed from Python is None, and could not be restored.
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
