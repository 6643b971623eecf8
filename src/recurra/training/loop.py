"""The training loop: steps, evaluations and checkpoints until the budget is spent.

Knows neither files of text nor the command line. Everything random comes from the seed, and
everything the loop remembers is in `Memory`, so that a checkpoint can hold it. Between two updates
nothing is half done: there the loop reports, saves, and obeys signals.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from recurra.config import TrainingConfig
from recurra.data.batches import Batch, BatchStream, Ids
from recurra.engine.updater import Updater
from recurra.errors import LostProcessError, NonFiniteError, TrainingInterrupted
from recurra.io.files import append_line
from recurra.model.recurrent_lm import RecurrentLM
from recurra.report.overfitting import describe_overfitting
from recurra.report.progress import Moment
from recurra.runs.directory import RunDirectory
from recurra.runs.train_state import Memory, Timing
from recurra.runs.weights import load_weights, save_weights
from recurra.runtime.signals import PATIENCE, SIGNALS
from recurra.text.vocabulary import Vocabulary
from recurra.training.batch_schedule import GrowingStream
from recurra.training.budget import Budget
from recurra.training.context import RunContext
from recurra.training.estimate import describe_plan, seconds_per_step
from recurra.training.failures import describe_failure
from recurra.training.reporter import MAX_VALIDATION_TOKENS, Reporter
from recurra.training.saver import CheckpointManager
from recurra.training.schedules import learning_rate

REPORTS_PER_RUN = 20
MAX_ROLLBACKS = 3
LEARNING_PER_REPORT = 20.0
"""Of a budget in minutes this many times as long is spent on learning as on reports."""


class TrainingLoop:
    """Trains one model on one row of ids.

    Args:
        model: on its device already; trained in place, and left with the best weights.
        train_ids, val_ids: the two parts of the text; the second may be empty.
        val_sizes: characters and UTF-8 bytes of the second, without its first token.
        prompts: of the samples, prepared as the text was.
        vocabulary: knows every symbol of the prompts.
        config: how to train.
        identity: what a checkpoint must have in common with this run, see `compatibility.py`.
        folder: where reports, weights and checkpoints go.
        around: see `RunContext`.

    Raises:
        SourceError: the text does not fill one batch.
    """

    def __init__(
        self,
        model: RecurrentLM,
        train_ids: Ids,
        val_ids: Ids,
        val_sizes: tuple[int, int],
        prompts: tuple[str, ...],
        vocabulary: Vocabulary,
        config: TrainingConfig,
        identity: dict[str, Any],
        folder: RunDirectory,
        around: RunContext,
    ) -> None:
        self.model, self.vocabulary, self.config = model, vocabulary, config
        self.folder, self.progress = folder, around.progress
        self.processes, self.signals = around.processes, around.signals
        self.memory, self.timing = Memory(), Timing()
        self._reading = GrowingStream(train_ids, config, self.processes)
        self.budget = Budget(config, self.stream.epoch_length(), around.clock)
        self.updater = Updater(model, config, self.stream, self.processes)
        self.reporter = Reporter(
            model, vocabulary, val_ids, val_sizes, prompts, config, self.folder, self.progress,
            self.processes,
        )  # fmt: skip
        self.saver = CheckpointManager(self.folder, config, identity, self.progress, self.processes)
        self._spent = 0.0
        self._save_due = False
        self._stop_signal = 0
        self._is_whole = True
        self._batch: Batch | None = None

    @property
    def stream(self) -> BatchStream:
        """Where batches come from now."""
        return self._reading.now

    def resume(self) -> None:
        """Resume training from its newest intact checkpoint.

        Raises:
            RunError: there is no checkpoint, all are damaged, or it belongs to another text or
                other settings.
        """
        self.memory, self.timing = self.saver.restore(self.updater, self.reporter)
        self._reading.enter(self.memory.stage)
        self._follow_stream()
        self.budget.clock.rewind(self.timing.seconds)
        self.budget.reserve, self.budget.began = self.timing.reserve, self.timing.began
        if not self.memory.finished:
            self.progress.message(f"going on from step {self.memory.step:,}")

    def fit(self) -> list[dict[str, Any]]:
        """Train until the budget is spent, early stopping says so, or a signal comes.

        Returns:
            All lines of metrics.jsonl. The model holds the best weights.

        Raises:
            TrainingInterrupted: after a signal, when everything is saved.
            NonFiniteError, DivergenceError: training failed; the last good checkpoint and the best
                weights so far are on disk.
            LostProcessError: another process is gone; the last checkpoint is on disk.
        """
        with self.progress, self._deferred():
            self.signals.on_first = self._tell_signal
            try:
                self._begin()
                while not self._train():
                    pass
                return self._conclude()
            except TrainingInterrupted as stop:
                self._leave(stop)
            except LostProcessError as error:
                # torchrun sends those that are left a signal.
                self.signals.close()
                raise LostProcessError(f"{error}; {self._how_to_go_on()}") from error

    def _begin(self) -> None:
        self._agree()
        if self.memory.finished:
            self.progress.message("this run had finished already")
        if self.memory.step == 0:
            self._announce()
            self._start_afresh()
        self.model.train()

    def _announce(self) -> None:
        seconds = seconds_per_step(self.model, self.stream, self.processes.count)
        # Until the first report has shown it: reading forward takes a third of a training step.
        num_val = len(self.reporter.val_ids)
        share = num_val / (self.config.batch_size * self.stream.num_steps)
        self.budget.reserve = seconds * min(share, MAX_VALIDATION_TOKENS) / 3 + 0.5
        lines = describe_plan(
            self.model, self.stream, self.budget, seconds, num_val, self.processes.count
        )
        self.progress.plan(lines)

    def _start_afresh(self) -> None:
        if self.processes.is_first:
            for file in self.folder.histories():
                file.unlink(missing_ok=True)
        # Too small a disk shows now, and not after the first report.
        self._save()
        self.budget.began = self.timing.began = self.budget.clock.seconds()
        self._agree()

    def _train(self) -> bool:
        """Train until the budget is spent; return False after a rollback to a checkpoint."""
        self._batch = None
        batches = self._reading.batches(self.memory)
        try:
            while not self._done():
                if self._report_due():
                    self._report()
                    continue
                if self._save_due:
                    self._save()
                self._obey_signals()
                if self._reading.grow(self.memory, self._spent):
                    self._follow_stream()
                    batches = self._reading.batches(self.memory)
                self._batch = next(batches)
                if self._batch is None:
                    self._agree()
                else:
                    self._update(self._batch)
                self._batch = None
            if self.memory.since_report.tokens:
                self._report()
            return True
        except NonFiniteError as error:
            self._fail(error)
            return False

    def _follow_stream(self) -> None:
        self.updater.follow(self.stream)
        self.budget.epoch_length = self.stream.epoch_length()

    def _update(self, batch: Batch) -> None:
        started = time.perf_counter()
        memory, lr = self.memory, self._learning_rate()
        self._is_whole = False
        nats, norm = self.updater.update(batch, lr, memory.step + 1)
        memory.step += 1
        memory.position += 1
        memory.tokens += batch.num_tokens
        memory.since_report.add(nats, batch.num_tokens, norm, lr)
        self._is_whole = True
        self.timing.updates += time.perf_counter() - started
        self._agree()
        self._show_moment()

    def _learning_rate(self) -> float:
        return learning_rate(self.config, self._spent) * self.memory.lr_scale

    def _agree(self) -> None:
        """All-reduce the budget fraction of rank 0 and the pending stop signals."""
        memory, first = self.memory, self.processes.is_first
        spent = self.budget.spent(memory.step, memory.epochs(self.budget.epoch_length))
        save_due = self.saver.is_due(memory)
        own = [spent if first else 0.0, float(first and save_due)]
        flags = [float(self.signals.received == number) for number in SIGNALS]
        self._spent, due, *flags = self.processes.sum([*own, *flags])
        self._save_due = bool(due)
        came = [number for number, flag in zip(SIGNALS, flags, strict=True) if flag]
        self._stop_signal = int(came[0]) if came else 0

    def _obey_signals(self) -> None:
        if self.processes.count == 1:
            self.signals.obey()
        elif self._stop_signal:
            raise TrainingInterrupted(self._stop_signal)

    def _done(self) -> bool:
        if self.memory.step == 0:
            return False  # however small the budget, one update is made and reported
        patience = self.config.patience
        stalled = patience is not None and self.memory.reports_since_best >= patience
        return self.memory.finished or stalled or self._spent >= 1.0

    def _report_due(self) -> bool:
        memory = self.memory
        if not memory.since_report.tokens:
            return False
        if self.config.report_every is not None:
            return memory.step % self.config.report_every == 0
        due = int(self._spent * REPORTS_PER_RUN) > memory.reports
        if self.budget.minutes is None or not due:
            return due
        # Limit the share of a time budget that is spent on evaluation.
        waiting = self.budget.clock.seconds() < self.timing.next_report
        return not self.processes.sum([float(waiting and self.processes.is_first)])[0]

    def _report(self) -> None:
        memory, timing, clock = self.memory, self.timing, self.budget.clock
        started = clock.seconds()
        timing.seconds = started
        with self.updater.averaged_weights():
            with self._interruptible():
                report = self.reporter.compute(
                    memory, timing, self.stream.epoch_length(), with_samples=self._sample_due()
                )
            if self._sample_due():
                memory.last_sample = memory.step
            self.reporter.publish(report, memory)
        self._agree()
        memory.reports = int(self._spent * REPORTS_PER_RUN)
        timing.updates = 0.0
        if self._save_due:
            self._save()
        # Time must be left for one more of these when the budget ends.
        cost = clock.seconds() - started
        self.budget.reserve = timing.reserve = 1.2 * cost + 0.2
        timing.next_report = clock.seconds() + LEARNING_PER_REPORT * cost
        self._agree()

    def _interruptible(self) -> AbstractContextManager[None]:
        # A process that left alone would leave the others waiting for it.
        alone = self.processes.count == 1
        return self.signals.obeyed_at_once() if alone else self._deferred()

    def _deferred(self) -> AbstractContextManager[None]:
        # Of several processes none may leave on its own, however impatient the signals are.
        alone = self.processes.count == 1
        return self.signals.deferred() if alone else self.signals.protected()

    def _sample_due(self) -> bool:
        since = self.memory.step - self.memory.last_sample
        return since >= (self.config.sample_every or 1) or self._done()

    def _show_moment(self) -> None:
        spent, tally = self._spent, self.memory.since_report
        speed = tally.tokens / max(self.timing.updates, 1e-9)
        left = self.budget.seconds_left(spent)
        self.progress.moment(Moment(spent, self.memory.step, tally.mean_nats, speed, left))

    def _save(self) -> None:
        self.timing.seconds = self.budget.clock.seconds()
        with self.signals.protected():
            self.saver.save(self.memory, self.timing, self.updater, self.reporter.best)

    def _fail(self, error: NonFiniteError) -> None:
        """Record the batch; go back to the last report's checkpoint if that is wished for.

        Raises:
            NonFiniteError, DivergenceError: it is not wished for, or was done three times.
        """
        memory, lr = self.memory, self._learning_rate()
        record = describe_failure(error, self._batch, memory, lr, self.stream.ids, self.vocabulary)
        # Without a batch it is the report after an update that failed.
        step = memory.step
        where = f"after update {step}" if self._batch is None else f"before update {step + 1}"
        what = f"{where}: {error}"
        again = self.config.on_nan == "rollback" and memory.rollbacks < MAX_ROLLBACKS
        if again:
            self._roll_back(what)
        if self.processes.is_first:
            append_line(self.folder.failures, record)
        if not again:
            tried = f" after {memory.rollbacks} rollbacks" if memory.rollbacks else ""
            raise NonFiniteError(
                f"training stopped{tried} {what}; try a smaller --lr (it is {lr:g});"
                f" the batch is recorded in {self.folder.failures}"
            ) from error
        self._is_whole = True

    def _roll_back(self, what: str) -> None:
        rollbacks, scale, seconds = (
            self.memory.rollbacks + 1,
            self.memory.lr_scale / 2,
            self.budget.clock.seconds(),
        )
        self.memory, self.timing = self.saver.roll_back(self.memory, self.updater, self.reporter)
        self._reading.enter(self.memory.stage)
        self._follow_stream()
        self.memory.rollbacks, self.memory.lr_scale = rollbacks, scale
        self.timing.seconds, self.timing.began = seconds, self.budget.began
        self._agree()
        self.progress.message(
            f"{what}; back to step {self.memory.step:,} with half the learning rate"
            f" ({self._learning_rate():.3g} now), rollback {rollbacks} of {MAX_ROLLBACKS}"
        )

    def _tell_signal(self) -> None:
        self.progress.message(
            f"finishing this step, then saving (again after {PATIENCE:.0f} s: stop at once)"
        )

    def _leave(self, stop: TrainingInterrupted) -> NoReturn:
        """Save, unless an update is unfinished, and report how to resume.

        Raises:
            TrainingInterrupted: always.
        """
        if not self._is_whole:
            raise TrainingInterrupted(
                stop.signum, f"in the middle of an update; {self._how_to_go_on()}"
            ) from None
        self._save()
        if self.processes.is_first and self.memory.best_loss is None:
            # Stopped before the first report: what was learned so far is the best there is.
            with self.updater.averaged_weights():
                save_weights(
                    self.folder.model, self.model, {"step": self.memory.step, "nats": None}
                )
        # Wait until it is on disk: torchrun ends the remaining processes when one exits.
        self.processes.sum([0.0])
        raise TrainingInterrupted(
            stop.signum, f"saved in {self.folder.path}; {self._how_to_go_on()}"
        ) from None

    def _how_to_go_on(self) -> str:
        step = f"step {self.saver.last_step:,}"
        return f"recurra train --resume {self.folder.path} goes on from {step}"

    def _conclude(self) -> list[dict[str, Any]]:
        if not self.memory.finished:
            # Two of the same step in every run: one to go back to, and one that says the end.
            if not self.saver.holds(self.memory):
                self._save()
            self.memory.finished = True
            self._save()
        # The other processes read what the first one wrote.
        self.processes.sum([0.0])
        if self.folder.model.is_file():
            load_weights(self.folder.model, self.model)
        self.model.eval()
        records = self.folder.read_metrics()
        self.saver.tell_cost(self.budget.clock.seconds())
        if (memorised := describe_overfitting(records)) is not None:
            self.progress.message(memorised)
        self.progress.finished(records)
        return records
