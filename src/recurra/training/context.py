"""The context of a training run: progress display, clock, processes and stop signals."""

from __future__ import annotations

from dataclasses import dataclass

from recurra.report.progress import Progress
from recurra.runtime.clock import Clock
from recurra.runtime.distributed import Processes
from recurra.runtime.signals import StopSignals


@dataclass(frozen=True)
class RunContext:
    """The environment of a training run.

    Attributes:
        progress: receives training events.
        clock: measures the time since the run began.
        processes: the processes that train the model together.
        signals: handles stop signals.
    """

    progress: Progress
    clock: Clock
    processes: Processes
    signals: StopSignals
