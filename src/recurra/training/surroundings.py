"""What a training is surrounded by: those who are told, the clock, other processes, signals."""

from __future__ import annotations

from dataclasses import dataclass

from recurra.processes import Processes
from recurra.training.budget import Clock
from recurra.training.interruption import StopSignals
from recurra.training.progress import Progress


@dataclass(frozen=True)
class Surroundings:
    """What a training is surrounded by.

    Attributes:
        progress: who is told.
        clock: started when the run's time began.
        processes: those that train together.
        signals: what a person wants meanwhile.
    """

    progress: Progress
    clock: Clock
    processes: Processes
    signals: StopSignals
