"""The clock of a run, which tests can replace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """Measures the duration of a run, without interruptions and pauses.

    Attributes:
        now: returns the current time of `source` in seconds.

    Args:
        started: time of `source` at which the run began; None for now.
        source: returns the current time in seconds, which never decreases.
    """

    def __init__(
        self, started: float | None = None, *, source: Callable[[], float] = time.monotonic
    ) -> None:
        self.now = source
        self._started = source() if started is None else started

    def rewind(self, seconds: float) -> None:
        """Set the start of the run to this many seconds ago."""
        self._started = self.now() - seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block, even if it raises an exception."""
        before = self.seconds()
        try:
            yield
        finally:
            self.rewind(before)

    def seconds(self) -> float:
        """Return the seconds since the run began."""
        return self.now() - self._started
