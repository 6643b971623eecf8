"""The context of a run: progress callbacks, clock, processes and stop signals."""

from __future__ import annotations

from dataclasses import dataclass

from recurra.report.progress import Progress
from recurra.runtime.clock import Clock
from recurra.runtime.distributed import Processes
from recurra.runtime.signals import StopSignals


@dataclass(frozen=True)
class RunContext:
    """What a training is surrounded by.

    Attributes:
        progress: receives training events.
        clock: started when the run's time began.
        processes: those that train together.
        signals: the pending stop signals.
    """

    progress: Progress
    clock: Clock
    processes: Processes
    signals: StopSignals
