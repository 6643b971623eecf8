"""Decide when a checkpoint is due, write it, and restore training from it.

The first process writes; all of them read.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recurra.config import TrainingConfig
from recurra.engine.generators import OPTIONAL
from recurra.errors import ConfigError, RunError
from recurra.io.files import replace_bytes
from recurra.io.tensors import Tensors, read_tensor_file, to_bytes
from recurra.report.progress import format_seconds
from recurra.runs.checkpoint import BEST, STATE, CheckpointRecord
from recurra.runs.checkpoint_store import CheckpointStore, Cost, name_of, step_of
from recurra.runs.compatibility import differences, environment
from recurra.runs.directory import RunDirectory
from recurra.runs.train_state import TrainState
from recurra.training.batch_schedule import at_stage
from recurra.training.callbacks.callback import Callback
from recurra.training.context import RunContext
from recurra.training.session import TrainingSession

SECONDS_BETWEEN = 30.0
"""Seconds between two checkpoints, unless there is a report."""
LARGEST_SHARE = 0.01
"""The share of the time that checkpoints may take."""
KEPT = 2
"""Checkpoints to keep: the newest, and the previous one in case of disk errors."""
DECISION = "checkpoint"


@dataclass
class BestWeights:
    """The bytes of the file of the best weights; None before the first report."""

    data: bytes | None = None


class Checkpointing(Callback):
    """Save a training, and restore it.

    Attributes:
        last_step: the step of the newest checkpoint.
        best_weights: the best weights, which evaluation keeps and every checkpoint contains.

    Args:
        directory: the run's.
        config: how to train.
        identity: what a checkpoint must have in common with the run, see `compatibility.identity`.
        context: clock, processes and progress display.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: TrainingConfig,
        identity: dict[str, Any],
        context: RunContext,
    ) -> None:
        self.directory, self.config, self.context = directory, config, context
        self.checkpoints = CheckpointStore(directory.checkpoints)
        self.last_step = 0
        self.best_weights = BestWeights()
        self._identity = identity
        self._saved: TrainState | None = None
        self._when = context.clock.now()
        self._costs: list[Cost] = []
        self._has_shown_size = False

    def start(self, session: TrainingSession) -> None:
        """Let the first process decide after every step whether a checkpoint is due."""
        session.decide(DECISION, lambda: self._is_due(session.state))

    def before_step(self, session: TrainingSession) -> None:
        """Save if a checkpoint is due."""
        if session.is_decided(DECISION):
            self.save(session)

    def finish(self, session: TrainingSession) -> None:
        """Save the end of the training.

        Every run ends with two checkpoints of the same step: one to go back to, and one that
        records the end.
        """
        if session.state.finished:
            return
        if self._saved != session.state:
            self.save(session)
        session.state.finished = True
        self.save(session)

    def save(self, session: TrainingSession) -> None:
        """Write a checkpoint and delete superseded ones; signals wait meanwhile.

        Raises:
            OSError: the disk is full or fails; the older checkpoints are unchanged.
        """
        session.collect()
        session.timing.seconds = session.budget.clock.seconds()
        with self.context.signals.protected():
            tensors = session.engine.state_dict()
            if self.context.processes.is_first:
                self._write(session, tensors)
            self.last_step = session.state.step
            self._saved, self._when = copy.deepcopy(session.state), self.context.clock.now()

    def restore(self, session: TrainingSession) -> None:
        """Load the newest intact checkpoint, and report newer ones that are damaged.

        Raises:
            RunError: none is intact, or it belongs to another text or other settings.
        """
        processes = self.context.processes
        name = processes.run_on_first(lambda: self._newest_intact(self.checkpoints.names()))
        self._load(name, session)
        self._restore_files(name, [*self.directory.histories()])

    def roll_back(self, session: TrainingSession) -> None:
        """Load the checkpoint of the last report; those after it are removed.

        Raises:
            RunError: neither that one nor an older one is intact.
        """
        last = session.state.last_report
        names = [n for n in self.checkpoints.names() if step_of(n) <= last]
        name = self.context.processes.run_on_first(lambda: self._newest_intact(names))
        self._load(name, session)
        # Failures stay on record.
        self._restore_files(name, [self.directory.metrics, self.directory.samples])

    def show_cost(self, seconds: float) -> None:
        """Show which share of a training of so many seconds the checkpoints took."""
        if self._costs:
            total = sum(cost.seconds for cost in self._costs)
            self.context.progress.saving(
                f"saved     {len(self._costs):,} checkpoints of {self._size()} in {total:.2f} s,"
                f" {total / max(seconds, 1e-9):.2%} of the training"
            )

    def _is_due(self, state: TrainState) -> bool:
        """Return whether to save now: by the number of updates or by the clock, and always after a
        report that a rollback may return to."""
        if self._saved == state:
            return False
        at_report = state.step == state.last_report
        if at_report and self.config.on_nan == "rollback":
            return True
        if self.config.checkpoint_every is not None:
            return state.step % self.config.checkpoint_every == 0
        seconds = self._costs[-1].seconds if self._costs else 0.0
        pause = seconds / LARGEST_SHARE
        if not at_report:
            pause = max(pause, SECONDS_BETWEEN)
        return self.context.clock.now() - self._when >= pause

    def _write(self, session: TrainingSession, tensors: Tensors) -> None:
        state, best = session.state, self.best_weights.data
        found = environment(self.context.processes, session.backend)
        record = CheckpointRecord(state, self._identity, session.timing, found)
        files = {
            STATE: to_bytes(tensors, {}),
            **record.to_files(),
            **({} if best is None else {BEST: best}),
            **{p.name: p.read_bytes() for p in self.directory.histories() if p.is_file()},
        }
        name = name_of(state.step, final=state.finished)
        self._costs.append(self.checkpoints.write(name, files))
        self._remove_superseded(self.checkpoints.names(), state)
        # The one before the first update is small: it has no optimizer state yet.
        if state.step > 0 and not self._has_shown_size:
            self._show_size()

    def _show_size(self) -> None:
        self._has_shown_size = True
        every = self.config.checkpoint_every
        seconds = self._costs[-1].seconds
        pause = max(seconds / LARGEST_SHARE, SECONDS_BETWEEN)
        then = f"{every:,} updates" if every else f"{format_seconds(pause)} and at reports"
        self.context.progress.saving(
            f"saving    {self._size()} in {seconds:.2f} s, again every {then}"
        )

    def _size(self) -> str:
        return f"{self._costs[-1].num_bytes / 1e6:.1f} MB"

    def _remove_superseded(self, names: list[str], state: TrainState) -> None:
        """Keep the last of these names, and the one that a rollback would go to."""
        kept = set(names[-KEPT:])
        if self.config.on_nan == "rollback":
            kept.add(name_of(state.last_report))
        self.checkpoints.keep_only(kept)

    def _newest_intact(self, names: list[str]) -> str:
        """The last of these whose bytes are what was written and whose record can be read."""
        damage: list[str] = []
        for name in reversed(names):
            place = self.checkpoints.folder / name
            try:
                self.checkpoints.verify(name)
                self._refuse_other_run(CheckpointRecord.read(place), place)
                return self._report_damage(name, damage)
            except _OtherRunError as error:
                raise RunError(str(error)) from None
            except RunError as error:
                damage.append(str(error))
        if damage:
            raise RunError(f"no checkpoint of {self.directory.path} is intact: {damage[0]}")
        raise RunError(f"{self.checkpoints.folder} has no checkpoint")

    def _report_damage(self, name: str, damage: list[str]) -> str:
        for sentence in damage:
            self.context.progress.message(
                f"{sentence}; resuming from {self.checkpoints.folder / name}"
            )
        return name

    def _refuse_other_run(self, record: CheckpointRecord, place: Path) -> None:
        found = differences(record.identity, self._identity)
        if found:
            raise _OtherRunError(
                f"{place} belongs to another text or other settings: {'; '.join(found)}"
            )

    def _load(self, name: str, session: TrainingSession) -> None:
        place = self.checkpoints.folder / name
        record = CheckpointRecord.read(place)
        state = record.state
        rows = at_stage(self.config, state.stage).batch_size if state.step > 0 else None
        specs = session.engine.state_specs(rows)
        tensors, _ = read_tensor_file(place / STATE, specs, optional=OPTIONAL)
        try:
            session.engine.load_state_dict(tensors, state.step)
        except ConfigError as error:
            raise RunError(f"{place / STATE} is damaged: {error}") from error
        best = place / BEST
        self.best_weights.data = best.read_bytes() if best.is_file() else None
        self._show_changes(record, session.backend)
        self.last_step = state.step
        self._saved = copy.deepcopy(state)
        session.state, session.timing = state, record.timing
        # Barrier: no process may still be reading the checkpoints that are deleted below.
        self.context.processes.sum([0.0])
        if self.context.processes.is_first:
            names = self.checkpoints.names()
            self._remove_superseded(names[: names.index(name) + 1], state)

    def _show_changes(self, record: CheckpointRecord, backend: str) -> None:
        for change in differences(record.environment, environment(self.context.processes, backend)):
            self.context.progress.message(
                f"warning: {change}; from here on the result may differ in its last bits from that"
                " of an uninterrupted run"
            )

    def _restore_files(self, name: str, histories: list[Path]) -> None:
        """Put the best weights and the histories where they were when this was saved."""
        if not self.context.processes.is_first:
            return
        place = self.checkpoints.folder / name
        for file in histories:
            saved = place / file.name
            if saved.is_file():
                replace_bytes(file, saved.read_bytes())
            else:
                file.unlink(missing_ok=True)
        if (place / BEST).is_file():
            self.directory.write_weights((place / BEST).read_bytes())


class _OtherRunError(RunError):
    """The checkpoint is whole, but not this run's: an older one would be no better."""
