"""Decide when a checkpoint is due, write it, and restore training from it.

The first process writes; all of them read. Knows neither batches nor reports.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

from recurra.config import TrainingConfig
from recurra.engine.updater import Updater
from recurra.errors import RunError
from recurra.io.files import replace_bytes
from recurra.recurrence.cells import State
from recurra.report.progress import Progress, format_seconds
from recurra.runs.checkpoint import BEST, STATE, Moment, read_state, state_to_bytes
from recurra.runs.checkpoint_store import CheckpointStore, Cost, name_of, step_of
from recurra.runs.compatibility import differences, environment
from recurra.runs.directory import RunDirectory
from recurra.runs.train_state import Memory, Timing
from recurra.runtime.distributed import Processes
from recurra.training.batch_schedule import at_stage
from recurra.training.reporter import Reporter

SECONDS_BETWEEN = 30.0
"""Between two checkpoints, unless there is a report."""
LARGEST_SHARE = 0.01
"""Of the time, that checkpoints may take."""
KEPT = 2
"""Checkpoints to keep: the newest, and the previous one in case of disk errors."""


class CheckpointManager:
    """Saves a training, and restores it.

    Attributes:
        last_step: the step of the newest checkpoint.

    Args:
        folder, config, progress, processes: as the trainer has them.
        identity: see `compatibility.identity`.
    """

    def __init__(
        self,
        folder: RunDirectory,
        config: TrainingConfig,
        identity: dict[str, Any],
        progress: Progress,
        processes: Processes,
    ) -> None:
        self.folder, self.config, self.progress = folder, config, progress
        self.processes = processes
        self.checkpoints = CheckpointStore(folder.checkpoints)
        self.last_step = 0
        self._identity = identity
        self._saved: Memory | None = None
        self._when = time.monotonic()
        self._costs: list[Cost] = []
        self._has_told = False

    def is_due(self, memory: Memory) -> bool:
        """Whether this moment should be saved: by the count of updates or the clock; after a
        report that a rollback may go back to, always."""
        if self.holds(memory):
            return False
        at_report = memory.step == memory.last_report
        if at_report and self.config.on_nan == "rollback":
            return True
        if self.config.checkpoint_every is not None:
            return memory.step % self.config.checkpoint_every == 0
        seconds = self._costs[-1].seconds if self._costs else 0.0
        pause = seconds / LARGEST_SHARE
        if not at_report:
            pause = max(pause, SECONDS_BETWEEN)
        return time.monotonic() - self._when >= pause

    def holds(self, memory: Memory) -> bool:
        """Whether the newest checkpoint is of this very moment."""
        return self._saved == memory

    def save(self, memory: Memory, timing: Timing, updater: Updater, best: bytes | None) -> None:
        """Write a checkpoint and delete superseded ones.

        Raises:
            OSError: the disk is full, or fails; the older checkpoints are as they were.
        """
        total = at_stage(self.config, memory.stage).batch_size
        hidden = [self.processes.gather_streams(part, total) for part in updater.state or ()]
        if self.processes.is_first:
            moment = Moment(
                memory, self._identity, timing, environment(self.processes, updater.backend)
            )
            files = {
                STATE: state_to_bytes(updater.model, updater.optimizer, updater.averages, hidden),
                **moment.to_files(),
                **({} if best is None else {BEST: best}),
                **{p.name: p.read_bytes() for p in self.folder.histories() if p.is_file()},
            }
            name = name_of(memory.step, final=memory.finished)
            self._costs.append(self.checkpoints.write(name, files))
            self._forget_needless(self.checkpoints.names(), memory)
            # The one before the first update is small: there are no averages in it yet.
            if memory.step > 0 and not self._has_told:
                self._tell_size()
        self.last_step = memory.step
        self._saved, self._when = copy.deepcopy(memory), time.monotonic()

    def restore(self, updater: Updater, reporter: Reporter) -> tuple[Memory, Timing]:
        """Restore the newest intact checkpoint, and report it if newer ones are damaged.

        Raises:
            RunError: none is whole, or it belongs to another text or other settings.
        """
        name = self.processes.run_on_first(lambda: self._newest_whole(self.checkpoints.names()))
        memory, timing = self._load(name, updater, reporter)
        self._restore_files(name, [*self.folder.histories()])
        return memory, timing

    def roll_back(
        self, memory: Memory, updater: Updater, reporter: Reporter
    ) -> tuple[Memory, Timing]:
        """Go back to the checkpoint of the last report; those after it are removed.

        Raises:
            RunError: neither that one nor an older one is whole.
        """
        names = [n for n in self.checkpoints.names() if step_of(n) <= memory.last_report]
        name = self.processes.run_on_first(lambda: self._newest_whole(names))
        restored = self._load(name, updater, reporter)
        # Failures stay on record.
        self._restore_files(name, [self.folder.metrics, self.folder.samples])
        return restored

    def tell_cost(self, seconds: float) -> None:
        """Say what the checkpoints took of a training of so many seconds."""
        if self._costs:
            spent = sum(cost.seconds for cost in self._costs)
            self.progress.saving(
                f"saved     {len(self._costs):,} checkpoints of {self._size()} in {spent:.2f} s,"
                f" {spent / max(seconds, 1e-9):.2%} of the training"
            )

    def _tell_size(self) -> None:
        self._has_told = True
        every = self.config.checkpoint_every
        seconds = self._costs[-1].seconds
        pause = max(seconds / LARGEST_SHARE, SECONDS_BETWEEN)
        then = f"{every:,} updates" if every else f"{format_seconds(pause)} and at reports"
        self.progress.saving(f"saving    {self._size()} in {seconds:.2f} s, again every {then}")

    def _size(self) -> str:
        return f"{self._costs[-1].num_bytes / 1e6:.1f} MB"

    def _forget_needless(self, names: list[str], memory: Memory) -> None:
        """Keep the last of these names, and the one that a rollback would go to."""
        kept = set(names[-KEPT:])
        if self.config.on_nan == "rollback":
            kept.add(name_of(memory.last_report))
        self.checkpoints.keep_only(kept)

    def _newest_whole(self, names: list[str]) -> str:
        """The last of these whose bytes are what was written and whose record can be read."""
        damage: list[str] = []
        for name in reversed(names):
            place = self.checkpoints.folder / name
            try:
                self.checkpoints.verify(name)
                self._refuse_other_run(Moment.read(place), place)
                return self._told(name, damage)
            except _OtherRunError as error:
                raise RunError(str(error)) from None
            except RunError as error:
                damage.append(str(error))
        if damage:
            raise RunError(f"no checkpoint of {self.folder.path} is whole: {damage[0]}")
        raise RunError(f"{self.checkpoints.folder} has no checkpoint")

    def _told(self, name: str, damage: list[str]) -> str:
        for sentence in damage:
            self.progress.message(f"{sentence}; going on from {self.checkpoints.folder / name}")
        return name

    def _refuse_other_run(self, moment: Moment, place: Path) -> None:
        found = differences(moment.identity, self._identity)
        if found:
            raise _OtherRunError(
                f"{place} belongs to another text or other settings: {'; '.join(found)}"
            )

    def _load(self, name: str, updater: Updater, reporter: Reporter) -> tuple[Memory, Timing]:
        place = self.checkpoints.folder / name
        moment = Moment.read(place)
        hidden = read_state(
            place / STATE,
            updater.model,
            updater.optimizer,
            updater.averages,
            at_stage(self.config, moment.memory.stage).batch_size,
            begun=moment.memory.step > 0,
        )
        updater.state = self._own_rows(hidden, moment.memory)
        best = place / BEST
        reporter.best = best.read_bytes() if best.is_file() else None
        self._tell_changes(moment, updater.backend)
        self.last_step = moment.memory.step
        self._saved = copy.deepcopy(moment.memory)
        # Barrier: no process may still be reading the checkpoints that are deleted below.
        self.processes.sum([0.0])
        if self.processes.is_first:
            names = self.checkpoints.names()
            self._forget_needless(names[: names.index(name) + 1], moment.memory)
        return moment.memory, moment.timing

    def _own_rows(self, hidden: State | None, memory: Memory) -> State | None:
        rows = self.processes.share(at_stage(self.config, memory.stage).batch_size)
        return None if hidden is None else tuple(part[:, rows].contiguous() for part in hidden)

    def _tell_changes(self, moment: Moment, backend: str) -> None:
        for change in differences(moment.environment, environment(self.processes, backend)):
            self.progress.message(
                f"warning: {change}; from here on the result may differ in its last bits from that"
                " of an uninterrupted run"
            )

    def _restore_files(self, name: str, histories: list[Path]) -> None:
        """Put the best weights and the histories where they were when this was saved."""
        if not self.processes.is_first:
            return
        place = self.checkpoints.folder / name
        for file in histories:
            saved = place / file.name
            if saved.is_file():
                replace_bytes(file, saved.read_bytes())
            else:
                file.unlink(missing_ok=True)
        if (place / BEST).is_file():
            replace_bytes(self.folder.model, (place / BEST).read_bytes())


class _OtherRunError(RunError):
    """The checkpoint is whole, but not this run's: an older one would be no better."""
