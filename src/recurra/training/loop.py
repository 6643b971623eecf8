"""The training loop: steps, and callbacks between them, until the budget is spent.

All random numbers depend on the seed. The state that determines the rest of the training is in
`session.state` and in the engine, and every checkpoint contains both.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NoReturn

from recurra.config import TrainingConfig
from recurra.data.dataset import TokenDataset
from recurra.engine.select import select_engine
from recurra.errors import LostProcessError, NonFiniteError, TrainingInterrupted
from recurra.inference.evaluate import unknown_remark
from recurra.model.recurrent_lm import RecurrentLM
from recurra.report.overfitting import describe_overfitting
from recurra.report.usability import Outcome, describe_unusable
from recurra.runs.store import RunStore, best_record
from recurra.runs.weights import weights_to_bytes
from recurra.training.batch_schedule import GrowingStream
from recurra.training.budget import Budget
from recurra.training.callbacks.batch_growth import BatchGrowth
from recurra.training.callbacks.callback import Callback
from recurra.training.callbacks.checkpointing import Checkpointing
from recurra.training.callbacks.early_stopping import EarlyStopping
from recurra.training.callbacks.evaluation import Evaluation
from recurra.training.callbacks.loss_curve import LossCurve
from recurra.training.callbacks.rollback import Rollback
from recurra.training.callbacks.stop_signals import SignalHandling
from recurra.training.context import RunContext
from recurra.training.estimate import announce_plan
from recurra.training.extension import extend, previous_budget
from recurra.training.session import PendingStep, StepFailedError, TrainingSession


class TrainingLoop:
    """The training of one model on one dataset.

    Args:
        model: the model, already on its device; it is trained in place and has the best weights at
            the end.
        dataset: the tokens.
        config: the training configuration.
        identity: the properties that a checkpoint must share with this run, see `compatibility.py`.
        store: the storage of metrics, weights and checkpoints, such as a `RunDirectory`.
        context: clock, processes, signals and progress display.
        prompts: prompts of the samples, preprocessed like the text.

    Raises:
        SourceError: the text does not fill one batch.
    """

    def __init__(
        self,
        model: RecurrentLM,
        dataset: TokenDataset,
        config: TrainingConfig,
        identity: dict[str, Any],
        store: RunStore,
        context: RunContext,
        prompts: tuple[str, ...] = (),
    ) -> None:
        data = GrowingStream(dataset.train, config, context.processes)
        self.session = TrainingSession(
            model=model,
            dataset=dataset,
            config=config,
            engine=select_engine(model, config, context.processes),
            context=context,
            store=store,
            data=data,
            budget=Budget(config, data.now.epoch_length(), context.clock),
        )
        self.checkpointing = Checkpointing(store, config, identity, context)
        self.callbacks: list[Callback] = [
            LossCurve(store, context),
            Evaluation(prompts, self.checkpointing),
            EarlyStopping(config.patience),
            self.checkpointing,
            SignalHandling(),
            BatchGrowth(),
            Rollback(self.checkpointing),
        ]

    def resume(self) -> None:
        """Load the newest intact checkpoint; with another budget than its own, train longer.

        Raises:
            ConfigError: the budget differs from that of the checkpoint, and is spent already.
            RunError: there is no checkpoint, all are damaged, or it belongs to another text or
                other settings.
        """
        session = self.session
        self.checkpointing.restore(session)
        session.data.enter(session.state.stage)
        session.budget.clock.rewind(session.timing.seconds)
        session.budget.reserve, session.budget.began = session.timing.reserve, session.timing.began
        if not session.state.finished:
            session.context.progress.message(f"resuming from step {session.state.step:,}")
        before = previous_budget(self.checkpointing.restored_identity, session.config)
        if before is not None and session.state.step > 0:
            extend(session, before)

    def fit(self) -> list[dict[str, Any]]:
        """Train until the budget is spent, early stopping ends it, or a signal arrives.

        Returns:
            All records of metrics.jsonl. The model has the best weights.

        Raises:
            TrainingInterrupted: a signal arrived. A checkpoint is saved unless a step was in
                progress.
            NonFiniteError, DivergenceError: training failed; the last checkpoint and the best
                weights so far are on disk.
            LostProcessError: another process has ended; the last checkpoint is on disk.
        """
        signals = self.session.context.signals
        with self.session.context.progress, self._deferred_signals():
            try:
                self._start()
                while not self._train():
                    pass
                return self._finish()
            except TrainingInterrupted as stop:
                self._leave(stop)
            except LostProcessError as error:
                # torchrun sends the remaining processes a signal.
                signals.close()
                raise LostProcessError(f"{error}; {self._how_to_resume()}") from error

    def is_done(self) -> bool:
        """Return whether training is done; it has at least one step."""
        session = self.session
        if session.state.step == 0:
            return False
        if session.state.finished or session.fraction >= 1.0:
            return True
        return any(callback.should_stop(session) for callback in self.callbacks)

    def _start(self) -> None:
        session = self.session
        for callback in self.callbacks:
            callback.start(session)
        session.restart_batches()
        session.share_progress()
        if session.state.finished:
            # A line of the plan, because a comparison hides those of its runs.
            line = (
                f"this run has already finished; recurra train --resume {session.store.path} with a"
                " greater budget, for example --steps"
                f" {2 * session.state.step}, continues from step {session.state.step:,}"
            )
            session.context.progress.plan([line])
        if session.state.step == 0:
            announce_plan(session)
            self._start_from_zero()
        session.model.train()

    def _start_from_zero(self) -> None:
        session = self.session
        if session.context.processes.is_first:
            session.store.remove_histories()
        # If the disk is full, training fails now instead of after the first report.
        self.checkpointing.save(session)
        session.budget.began = session.timing.began = session.budget.clock.seconds()
        session.share_progress()

    def _train(self) -> bool:
        """Train until the budget is spent; return False after recovery from a failed step."""
        session = self.session
        try:
            while self._may_step():
                session.step()
            session.collect()
            for callback in self.callbacks:
                callback.finish(session)
            return True
        except StepFailedError as failure:
            self._recover(failure)
        except NonFiniteError as error:
            state = session.state
            after = PendingStep(
                None, state.step, state.epoch, state.position, session.learning_rate()
            )
            self._recover(StepFailedError(str(error), after))
        return False

    def _may_step(self) -> bool:
        """Call the callbacks in order; return False as soon as training is done."""
        for callback in self.callbacks:
            if self.is_done():
                return False
            callback.before_step(self.session)
        return not self.is_done()

    def _recover(self, failure: StepFailedError) -> None:
        """Let the callbacks recover from a step that failed.

        Raises:
            NonFiniteError: no callback can recover.
        """
        recovered = False
        for callback in self.callbacks:
            recovered |= callback.recover(self.session, failure)
        if not recovered:
            raise failure

    def _finish(self) -> list[dict[str, Any]]:
        session = self.session
        # Barrier: the first process must have written the weights that all processes load.
        session.context.processes.sum([0.0])
        session.store.load_best_weights(session.model)
        session.model.eval()
        records = session.store.read_metrics()
        self.checkpointing.show_cost(session.budget.clock.seconds())
        if (overfitting := describe_overfitting(records)) is not None:
            session.context.progress.message(overfitting)
        if (unusable := self._describe_unusable(records)) is not None:
            session.context.progress.message(unusable)
        share, of_what = session.dataset.unknown_share()
        if (remark := unknown_remark(share, of_what)) is not None:
            session.context.progress.message(f"unknown   {remark}")
        session.context.progress.finished(records)
        return records

    def _describe_unusable(self, records: list[dict[str, Any]]) -> str | None:
        session = self.session
        if not records:
            return None
        outcome = Outcome(
            best_record(records),
            session.dataset.frequency_nats(),
            len(session.dataset.train),
            session.state.step,
            str(session.store.path),
        )
        return describe_unusable(outcome, session.config)

    def _leave(self, stop: TrainingInterrupted) -> NoReturn:
        """Save a checkpoint unless a step is in progress, and raise with instructions to resume.

        Raises:
            TrainingInterrupted: always.
        """
        session = self.session
        if not session.is_between_steps:
            raise TrainingInterrupted(
                stop.signum, f"stopped during an update; {self._how_to_resume()}"
            ) from None
        self.checkpointing.save(session)
        if session.context.processes.is_first and session.state.best_loss is None:
            # There was no report yet, so the current weights are saved as the best ones.
            record = {"step": session.state.step, "nats": None}
            with session.engine.averaged_weights():
                session.store.write_weights(weights_to_bytes(session.model, record))
        # Barrier: torchrun ends all processes when one exits, even while the first one is writing.
        session.context.processes.sum([0.0])
        raise TrainingInterrupted(
            stop.signum,
            f"saved in {session.store.path}; {self._how_to_resume()}",
            session.store.path,
        ) from None

    def _deferred_signals(self) -> AbstractContextManager[None]:
        # With several processes, all must stop at the same step, however many signals arrive.
        context = self.session.context
        is_single = context.processes.count == 1
        return context.signals.deferred() if is_single else context.signals.protected()

    def _how_to_resume(self) -> str:
        step = f"step {self.checkpointing.last_step:,}"
        return f"recurra train --resume {self.session.store.path} continues from {step}"
