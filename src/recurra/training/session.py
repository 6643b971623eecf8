"""The state of a training run that the training loop and its callbacks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from recurra.config import TrainingConfig
from recurra.data.batches import Batch, BatchStream
from recurra.data.dataset import TokenDataset
from recurra.engine.engine import Engine
from recurra.errors import NonFiniteError
from recurra.model.recurrent_lm import RecurrentLM
from recurra.report.progress import StepMetrics
from recurra.runs.store import RunStore
from recurra.runs.train_state import Timing, TrainState
from recurra.runtime.signals import SIGNALS
from recurra.training.batch_schedule import GrowingStream
from recurra.training.budget import Budget
from recurra.training.context import RunContext
from recurra.training.schedules import learning_rate


@dataclass(frozen=True)
class PendingStep:
    """A step whose result has not been read yet.

    Attributes:
        batch: the batch; None if the evaluation after a step failed instead of a step.
        step, epoch, position: the position in training before the step, as in `TrainState`.
        lr: the learning rate.
    """

    batch: Batch | None
    step: int
    epoch: int
    position: int
    lr: float


class StepFailedError(NonFiniteError):
    """The loss or a gradient of a step is NaN or infinite; the step changed no weights.

    Attributes:
        pending: the step.
    """

    def __init__(self, reason: str, pending: PendingStep) -> None:
        super().__init__(reason)
        self.pending = pending


@dataclass
class TrainingSession:
    """A training run in this process.

    Attributes:
        model: the model, which is trained in place.
        dataset: the tokens.
        config: the training configuration.
        engine: executes the steps.
        context: clock, processes, signals and progress display.
        store: the storage of metrics, weights and checkpoints.
        data: the batches of all stages.
        budget: the training budget.
        state, timing: the part of the state that is saved in checkpoints.
        fraction: fraction of the budget that is spent, the same in all processes.
        stop_signal: number of a signal that a process has received, or 0.
        is_between_steps: whether no step is in progress, so that a checkpoint can be saved.
    """

    model: RecurrentLM
    dataset: TokenDataset
    config: TrainingConfig
    engine: Engine
    context: RunContext
    store: RunStore
    data: GrowingStream
    budget: Budget
    state: TrainState = field(default_factory=TrainState)
    timing: Timing = field(default_factory=Timing)
    fraction: float = 0.0
    stop_signal: int = 0
    is_between_steps: bool = True
    _decisions: dict[str, Callable[[], bool]] = field(default_factory=dict)
    _decided: dict[str, bool] = field(default_factory=dict)
    _pending: list[PendingStep] = field(default_factory=list)
    _batches: Iterator[Batch | None] = field(default_factory=lambda: iter(()))

    @property
    def stream(self) -> BatchStream:
        """The batches of the current stage."""
        return self.data.now

    @property
    def backend(self) -> str:
        """The backend that computes the recurrence: `auto` resolved."""
        return self.model.backend_for(self.stream.recurrent_gradient_scale)

    @property
    def has_unreported_steps(self) -> bool:
        """Whether there were steps since the last report."""
        return bool(self._pending or self.state.since_report.tokens)

    def learning_rate(self) -> float:
        """Return the learning rate of the next step."""
        return learning_rate(self.config, self.fraction) * self.state.lr_scale

    def decide(self, name: str, rule: Callable[[], bool]) -> None:
        """Register a decision that the first process makes after every step for all processes.

        Args:
            name: the name for `is_decided`.
            rule: returns the decision; only the result of the first process counts.
        """
        self._decisions[name] = rule

    def is_decided(self, name: str) -> bool:
        """Return the decision of the first process after the last step; False if there is none."""
        return self._decided.get(name, False)

    def share_progress(self) -> None:
        """Share progress and decisions of the first process, and the signals of all processes.

        A single all-reduce is used for all of them.

        Raises:
            LostProcessError: another process has ended.
        """
        state, is_first = self.state, self.context.processes.is_first
        fraction = self.budget.spent(state.step, state.epochs(self.budget.epoch_length))
        own = [fraction, *(float(rule()) for rule in self._decisions.values())]
        if not is_first:
            own = [0.0] * len(own)
        signals = [float(self.context.signals.received == number) for number in SIGNALS]
        self.fraction, *shared = self.context.processes.sum([*own, *signals])
        decided = shared[: len(self._decisions)]
        self._decided = {n: bool(d) for n, d in zip(self._decisions, decided, strict=True)}
        received = [
            number
            for number, flag in zip(SIGNALS, shared[len(self._decisions) :], strict=True)
            if flag
        ]
        self.stop_signal = int(received[0]) if received else 0

    def restart_batches(self) -> None:
        """Restart the iterator of batches at the position in `state`, in the current stage."""
        self.budget.epoch_length = self.stream.epoch_length()
        self._batches = self.data.batches(self.state)

    def step(self) -> None:
        """Train on the next batch, or start the next epoch.

        Raises:
            StepFailedError: the loss or a gradient of this or a pending step is NaN or infinite.
            LostProcessError: another process has ended.
        """
        batch = next(self._batches)
        if batch is None:
            self.share_progress()
            return
        started = self.context.clock.now()
        state, lr = self.state, self.learning_rate()
        self._pending.append(PendingStep(batch, state.step, state.epoch, state.position, lr))
        self.is_between_steps = False
        self.engine.step(batch, lr)
        state.step += 1
        state.position += 1
        state.tokens += batch.num_tokens
        if len(self._pending) >= self.engine.max_pending:
            self.collect()
        self.is_between_steps = True
        self.timing.updates += self.context.clock.now() - started
        self.share_progress()
        self._show_progress()

    def collect(self) -> None:
        """Read the results of all pending steps.

        Raises:
            StepFailedError: the loss or a gradient of one of them is NaN or infinite.
        """
        pending, self._pending = self._pending, []
        for step, result in zip(pending, self.engine.synchronize(), strict=True):
            if result.failure is not None:
                raise StepFailedError(result.failure, step)
            mean = self.state.since_report
            norm = mean.grad_norm if result.skipped else result.grad_norm
            mean.add(result.nats, result.num_tokens, norm, step.lr)

    def discard_pending(self) -> None:
        """Discard the results of all pending steps, before an earlier state is loaded."""
        self.engine.synchronize()
        self._pending = []

    def _show_progress(self) -> None:
        mean = self.state.since_report
        if not mean.tokens:
            return
        speed = mean.tokens / max(self.timing.updates, 1e-9)
        left = self.budget.seconds_left(self.fraction)
        metrics = StepMetrics(self.fraction, self.state.step, mean.mean_nats, speed, left)
        self.context.progress.step(metrics)
