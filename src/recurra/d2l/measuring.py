"""Timer and accumulator of the book (sections 3.1 and 3.6)."""

from __future__ import annotations

import time

from torch import Tensor


class Timer:
    """Stopwatch that starts on creation.

    Attributes:
        times: the measured intervals in seconds.

    Examples:
        >>> from recurra import d2l
        >>> timer = d2l.Timer()
        >>> seconds = timer.stop()
        >>> timer.sum() == seconds
        True
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.start()

    def start(self) -> None:
        """Start an interval."""
        self.tik = time.perf_counter()

    def stop(self) -> float:
        """Record the seconds since the last start in `times`, and return them."""
        self.times.append(time.perf_counter() - self.tik)
        return self.times[-1]

    def avg(self) -> float:
        """Return the mean of the intervals in seconds."""
        return sum(self.times) / len(self.times)

    def sum(self) -> float:
        """Return the sum of the intervals in seconds."""
        return sum(self.times)

    def cumsum(self) -> list[float]:
        """Return the cumulative sums of the intervals in seconds."""
        return [sum(self.times[: i + 1]) for i in range(len(self.times))]


class Accumulator:
    """Sums of `n` quantities, accessed by index.

    Examples:
        >>> from recurra import d2l
        >>> metric = d2l.Accumulator(2)
        >>> metric.add(0.5, 10)
        >>> metric.add(1.5, 10)
        >>> metric[0] / metric[1]
        0.1
    """

    def __init__(self, n: int) -> None:
        self.data = [0.0] * n

    def add(self, *args: float | Tensor) -> None:
        """Add one number (or one-element tensor) to each sum."""
        # Notebooks add losses that require gradients; torch warns when these are converted.
        numbers = [float(a.detach()) if isinstance(a, Tensor) else float(a) for a in args]
        self.data = [total + number for total, number in zip(self.data, numbers, strict=True)]

    def reset(self) -> None:
        """Reset all sums to 0."""
        self.data = [0.0] * len(self.data)

    def __getitem__(self, index: int) -> float:
        return self.data[index]
