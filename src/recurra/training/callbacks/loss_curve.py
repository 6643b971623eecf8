"""Record the training loss about twice a second, for the plot of the loss.

The points depend on the clock, so they are not part of a checkpoint. A resumed run keeps the points
up to its checkpoint. Training does not read them.
"""

from __future__ import annotations

import math
from typing import Any

from recurra.errors import RunError
from recurra.runs.store import RunStore
from recurra.training.callbacks.callback import Callback
from recurra.training.callbacks.checkpointing import DECISION
from recurra.training.context import RunContext
from recurra.training.session import TrainingSession

MAX_POINTS = 1000
"""Maximum number of points. When there are more, neighbours are merged in pairs."""
MIN_INTERVAL = 0.5
"""Seconds between two points. The interval doubles each time the run is so long that it would have
more than `MAX_POINTS` points."""
WRITE_EVERY = 10.0
"""Seconds between two writes of the file. It is also written before a checkpoint and at the end."""

Point = dict[str, Any]


class LossCurve(Callback):
    """Callback that records the training loss, in the first process.

    Attributes:
        points: the points so far: step, tokens and seconds at the end of an interval, and
            `train_nats`, the mean training loss in nats per token in this interval.

    Args:
        store: the storage of the run.
        context: clock, processes and progress display.
    """

    def __init__(self, store: RunStore, context: RunContext) -> None:
        self._store, self._context = store, context
        self.points: list[Point] = []
        self._when = self._written = context.clock.now()
        self._step = self._report = 0
        self._nats, self._tokens = 0.0, 0
        self._has_failed = False

    def start(self, session: TrainingSession) -> None:
        """Load the points of the run up to its checkpoint; a new run has none."""
        if not self._context.processes.is_first:
            return
        self.points = []
        if session.state.step > 0:
            try:
                self.points = self._store.read_losses()
            except RunError as error:
                self._context.progress.message(f"warning: {error}; the loss curve begins here")
        self._return_to(session)

    def before_step(self, session: TrainingSession) -> None:
        """Record a point if one is due."""
        if not self._context.processes.is_first:
            return
        if session.state.step < self._step:  # after a rollback
            self._return_to(session)
        self._step = session.state.step
        now = self._context.clock.now()
        if now - self._when >= interval(session.budget.clock.seconds()):
            self._record(session)
        is_saving = session.stop_signal != 0 or session.is_decided(DECISION)
        if is_saving or now - self._written >= WRITE_EVERY:
            self._write()

    def finish(self, session: TrainingSession) -> None:
        """Record the steps since the last point."""
        if self._context.processes.is_first:
            self._record(session)
            self._write()

    def _record(self, session: TrainingSession) -> None:
        state = session.state
        mean = state.since_report
        if state.last_report != self._report:  # The sums were reset.
            self._nats, self._tokens = 0.0, 0
        tokens = mean.tokens - self._tokens
        if tokens <= 0:
            return
        self.points.append(
            {
                "step": state.step,
                "tokens": state.tokens,
                "seconds": round(session.budget.clock.seconds(), 3),
                "train_nats": round((mean.nats - self._nats) / tokens, 6),
            }
        )
        if len(self.points) > MAX_POINTS:
            self.points = merged_in_pairs(self.points)
        self._mark(session)

    def _return_to(self, session: TrainingSession) -> None:
        """Discard the points after the current step, which training repeats."""
        self.points = [point for point in self.points if point["step"] <= session.state.step]
        self._mark(session)

    def _mark(self, session: TrainingSession) -> None:
        """Begin the next interval at the current step."""
        mean = session.state.since_report
        self._nats, self._tokens = mean.nats, mean.tokens
        self._report, self._step = session.state.last_report, session.state.step
        self._when = self._context.clock.now()

    def _write(self) -> None:
        if self.points and not self._has_failed:
            try:
                self._store.write_losses(self.points)
            except OSError as error:
                # Training does not need the file; a checkpoint reports a full disk as an error.
                self._has_failed = True
                self._context.progress.message(
                    f"warning: the loss curve is not recorded: {error.strerror} ({error.filename})"
                )
        self._written = self._context.clock.now()


def interval(seconds: float) -> float:
    """Return the seconds between two points of a run that is `seconds` long so far.

    Examples:
        >>> from recurra.training.callbacks.loss_curve import interval
        >>> interval(60.0), interval(600.0), interval(86400.0)
        (0.5, 1.0, 128.0)
    """
    ratio = seconds / (MIN_INTERVAL * MAX_POINTS)
    return MIN_INTERVAL * 2.0 ** max(math.ceil(math.log2(ratio)) if ratio > 0 else 0, 0)


def merged_in_pairs(points: list[Point]) -> list[Point]:
    """Return half as many points, each with the mean loss of two intervals, weighted by tokens."""
    merged, before = [], 0
    for first, second in zip(points[::2], points[1::2], strict=False):
        middle, end = first["tokens"], second["tokens"]
        nats = first["train_nats"] * (middle - before) + second["train_nats"] * (end - middle)
        merged.append({**second, "train_nats": round(nats / max(end - before, 1), 6)})
        before = end
    return [*merged, *points[len(merged) * 2 :]]
