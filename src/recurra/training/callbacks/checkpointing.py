"""Decide when a checkpoint is due, write it, and restore training from it.

The first process writes checkpoints; all processes read them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recurra.config import TrainingConfig
from recurra.engine.generators import OPTIONAL
from recurra.errors import ConfigError, RunError
from recurra.io.tensors import Tensors, to_bytes
from recurra.report.progress import format_seconds
from recurra.runs.checkpoint import BEST, STATE, CheckpointRecord
from recurra.runs.checkpoint_store import Cost, name_of, step_of
from recurra.runs.compatibility import environment, other_environment, other_run
from recurra.runs.directory import HISTORIES, METRICS_FILE, SAMPLES_FILE
from recurra.runs.store import RunStore
from recurra.runs.train_state import TrainState
from recurra.training.batch_schedule import at_stage
from recurra.training.callbacks.callback import Callback
from recurra.training.context import RunContext
from recurra.training.session import TrainingSession

SECONDS_BETWEEN = 30.0
"""Minimum number of seconds between two checkpoints, except after a report."""
MAX_CHECKPOINT_SHARE = 0.01
"""Maximum fraction of the time that is spent on writing checkpoints."""
KEEP_LAST = 2
"""Number of checkpoints to keep: the newest, and the one before it in case of disk errors."""
DECISION = "checkpoint"


@dataclass
class BestWeights:
    """The contents of the best weights file.

    Attributes:
        data: the bytes of the file; None before the first report.
    """

    data: bytes | None = None


class Checkpointing(Callback):
    """Callback that saves checkpoints and restores training from them.

    Attributes:
        last_step: the step of the newest checkpoint.
        best_weights: the best weights, set by evaluation and saved in every checkpoint.

    Args:
        store: the storage of the run.
        config: the training configuration.
        identity: the properties that a checkpoint must share with the run, see
            `compatibility.identity`.
        context: clock, processes and progress display.
    """

    def __init__(
        self,
        store: RunStore,
        config: TrainingConfig,
        identity: dict[str, Any],
        context: RunContext,
    ) -> None:
        self.store, self.config, self.context = store, config, context
        self.checkpoints = store.checkpoints
        self.last_step = 0
        self.best_weights = BestWeights()
        self._identity = identity
        self.restored_identity = identity
        self._saved: TrainState | None = None
        self._when = context.clock.now()
        self._costs: list[Cost] = []
        self._has_shown_size = False

    def start(self, session: TrainingSession) -> None:
        """Register the decision whether a checkpoint is due, made by the first process."""
        session.decide(DECISION, lambda: self._is_due(session.state))

    def before_step(self, session: TrainingSession) -> None:
        """Save a checkpoint if one is due."""
        if session.is_decided(DECISION):
            self.save(session)

    def finish(self, session: TrainingSession) -> None:
        """Save the final checkpoints.

        Every run ends with two checkpoints of the same step. The second one records that training
        has finished.
        """
        if session.state.finished:
            return
        if self._saved != session.state:
            self.save(session)
        session.state.finished = True
        self.save(session)

    def save(self, session: TrainingSession) -> None:
        """Write a checkpoint and delete superseded ones; signals are deferred.

        Raises:
            OSError: writing failed, for example because the disk is full; older checkpoints are
                unchanged.
            StepFailedError: the loss or a gradient of a pending step is NaN or infinite.
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
            RunError: no checkpoint is intact, or it belongs to another text or other settings.
        """
        processes = self.context.processes
        name = processes.run_on_first(lambda: self._newest_intact(self.checkpoints.names()))
        self._load(name, session)
        self._restore_files(name, HISTORIES)

    def roll_back(self, session: TrainingSession) -> None:
        """Load the newest intact checkpoint up to the last report, and delete later ones.

        Raises:
            RunError: none of these checkpoints is intact.
        """
        last = session.state.last_report
        names = [n for n in self.checkpoints.names() if step_of(n) <= last]
        name = self.context.processes.run_on_first(lambda: self._newest_intact(names))
        self._load(name, session)
        # failures.jsonl is not restored, so that it keeps the failed step.
        self._restore_files(name, [METRICS_FILE, SAMPLES_FILE])

    def show_cost(self, seconds: float) -> None:
        """Report number, size and writing time of the checkpoints.

        Args:
            seconds: duration of the training.
        """
        if self._costs:
            total = sum(cost.seconds for cost in self._costs)
            self.context.progress.saving(
                f"checkpoints: {len(self._costs):,} of {self._size()} written in {total:.2f} s,"
                f" {total / max(seconds, 1e-9):.2%} of the training time"
            )

    def _is_due(self, state: TrainState) -> bool:
        """Return whether a checkpoint is due, by the number of steps or by the time.

        A checkpoint is always due after a report if rollbacks are enabled, because they return to
        it.
        """
        if self._saved == state:
            return False
        at_report = state.step == state.last_report
        if at_report and self.config.on_nan == "rollback":
            return True
        if self.config.checkpoint_every is not None:
            return state.step % self.config.checkpoint_every == 0
        seconds = self._costs[-1].seconds if self._costs else 0.0
        pause = seconds / MAX_CHECKPOINT_SHARE
        if not at_report:
            pause = max(pause, SECONDS_BETWEEN)
        return self.context.clock.now() - self._when >= pause

    def _write(self, session: TrainingSession, tensors: Tensors) -> None:
        state, best = session.state, self.best_weights.data
        found = environment(self.context.processes, session.backend, session.model.product_dtype)
        marks = self.store.mark_histories()
        record = CheckpointRecord(state, self._identity, session.timing, found, marks)
        files = {
            STATE: to_bytes(tensors, {}),
            **record.to_files(),
            **({} if best is None else {BEST: best}),
        }
        name = name_of(state.step, final=state.finished)
        self._costs.append(self.checkpoints.write(name, files))
        self._remove_superseded(self.checkpoints.names(), state)
        # The checkpoint before the first step is smaller, because it has no optimizer state.
        if state.step > 0 and not self._has_shown_size:
            self._show_size()

    def _show_size(self) -> None:
        self._has_shown_size = True
        every = self.config.checkpoint_every
        seconds = self._costs[-1].seconds
        pause = max(seconds / MAX_CHECKPOINT_SHARE, SECONDS_BETWEEN)
        interval = f"{every:,} steps" if every else f"{format_seconds(pause)} and after reports"
        self.context.progress.saving(
            f"checkpoint: {self._size()} written in {seconds:.2f} s, repeated every {interval}"
        )

    def _size(self) -> str:
        return f"{self._costs[-1].num_bytes / 1e6:.1f} MB"

    def _remove_superseded(self, names: list[str], state: TrainState) -> None:
        """Keep the last `KEEP_LAST` checkpoints, and the one that a rollback returns to."""
        kept = set(names[-KEEP_LAST:])
        if self.config.on_nan == "rollback":
            kept.add(name_of(state.last_report))
        self.checkpoints.keep_only(kept)

    def _newest_intact(self, names: list[str]) -> str:
        """Return the last of these checkpoints whose checksums and record are valid.

        Raises:
            RunError: none is valid, or the last valid one belongs to another run.
        """
        damage: list[str] = []
        for name in reversed(names):
            try:
                self.checkpoints.verify(name)
                self._refuse_other_run(self.checkpoints.read_record(name), name)
                return self._report_damage(name, damage)
            except _OtherRunError as error:
                raise RunError(str(error)) from None
            except RunError as error:
                damage.append(str(error))
        if damage:
            raise RunError(f"no checkpoint of {self.store.path} is intact: {damage[0]}")
        raise RunError(f"{self.store.path} has no checkpoint")

    def _report_damage(self, name: str, damage: list[str]) -> str:
        for message in damage:
            self.context.progress.message(
                f"{message}; resuming from {self.checkpoints.path_of(name)}"
            )
        return name

    def _refuse_other_run(self, record: CheckpointRecord, name: str) -> None:
        found = other_run(record.identity, self._identity)
        if found:
            raise _OtherRunError(
                f"{self.checkpoints.path_of(name)} belongs to another text or other settings:"
                f" {'; '.join(found)}"
            )

    def _load(self, name: str, session: TrainingSession) -> None:
        record = self.checkpoints.read_record(name)
        state = record.state
        rows = at_stage(self.config, state.stage).batch_size if state.step > 0 else None
        specs = session.engine.state_specs(rows)
        tensors = self.checkpoints.read_state(name, specs, OPTIONAL)
        try:
            session.engine.load_state_dict(tensors, state.step)
        except ConfigError as error:
            path = self.checkpoints.path_of(name) / STATE
            raise RunError(f"{path} is damaged: {error}") from error
        self.best_weights.data = self.checkpoints.read_file(name, BEST)
        self.restored_identity = record.identity
        self._show_changes(record, session)
        self.last_step = state.step
        self._saved = copy.deepcopy(state)
        session.state, session.timing = state, record.timing
        # Barrier: no process may still be reading the checkpoints that are deleted below.
        self.context.processes.sum([0.0])
        if self.context.processes.is_first:
            names = self.checkpoints.names()
            self._remove_superseded(names[: names.index(name) + 1], state)

    def _show_changes(self, record: CheckpointRecord, session: TrainingSession) -> None:
        dtype = session.model.product_dtype
        now = environment(self.context.processes, session.backend, dtype)
        for change in other_environment(record.environment, now):
            self.context.progress.message(
                f"warning: {change}; from here on the result may differ in its last bits from that"
                " of an uninterrupted run"
            )

    def _restore_files(self, name: str, histories: Sequence[str]) -> None:
        """Restore the best weights and these histories to the time of the checkpoint."""
        if not self.context.processes.is_first:
            return
        read_file = self.checkpoints.read_file
        marks = self.checkpoints.read_record(name).histories
        if marks is None:
            self.store.replace_histories({file: read_file(name, file) for file in histories})
        else:
            cut = {file: marks.get(file) for file in histories}
            for message in self.store.cut_histories(cut):
                self.context.progress.message(message)
        if (best := read_file(name, BEST)) is not None:
            self.store.write_weights(best)


class _OtherRunError(RunError):
    """An intact checkpoint belongs to another run; older checkpoints are not tried."""
