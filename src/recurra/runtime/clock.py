"""The clock of a run, which tests can replace."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Seconds of a training, including those before an interruption.

    Args:
        started: the time of `source` at which the run began; None for now.
        source: returns seconds that never decrease.
    """

    def __init__(
        self, started: float | None = None, *, source: Callable[[], float] = time.monotonic
    ) -> None:
        self.now = source
        self._started = source() if started is None else started

    def rewind(self, seconds: float) -> None:
        """Continue as if the run had begun this many seconds ago."""
        self._started = self.now() - seconds

    def seconds(self) -> float:
        """Return the seconds since the run began."""
        return self.now() - self._started
