"""The book's timer and accumulator (sections 3.1 and 3.6)."""

from __future__ import annotations

import time

from torch import Tensor


class Timer:
    """A stopwatch that runs from its creation; `times` holds each measured piece in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.start()

    def start(self) -> None:
        """Start the next piece now."""
        self.tik = time.perf_counter()

    def stop(self) -> float:
        """Note the seconds since the last start, and return them."""
        self.times.append(time.perf_counter() - self.tik)
        return self.times[-1]

    def avg(self) -> float:
        """Mean of all pieces, in seconds."""
        return sum(self.times) / len(self.times)

    def sum(self) -> float:
        """All pieces together, in seconds."""
        return sum(self.times)

    def cumsum(self) -> list[float]:
        """The sum after each piece, in seconds."""
        return [sum(self.times[: i + 1]) for i in range(len(self.times))]


class Accumulator:
    """Sums over `n` quantities, read by index."""

    def __init__(self, n: int) -> None:
        self.data = [0.0] * n

    def add(self, *args: float | Tensor) -> None:
        """Add one number (or one-element tensor) to each sum."""
        # Learners add losses that still carry their gradient; torch warns when such a one is read.
        numbers = [float(a.detach()) if isinstance(a, Tensor) else float(a) for a in args]
        self.data = [total + number for total, number in zip(self.data, numbers, strict=True)]

    def reset(self) -> None:
        """All sums back to 0."""
        self.data = [0.0] * len(self.data)

    def __getitem__(self, index: int) -> float:
        return self.data[index]
