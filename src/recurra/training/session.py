"""What the training loop and its callbacks share: the model, where it stands, and how it learns."""

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
from recurra.runs.directory import RunDirectory
from recurra.runs.train_state import Timing, TrainState
from recurra.runtime.signals import SIGNALS
from recurra.training.batch_schedule import GrowingStream
from recurra.training.budget import Budget
from recurra.training.context import RunContext
from recurra.training.schedules import learning_rate


@dataclass(frozen=True)
class PendingStep:
    """A step whose result was not read yet.

    Attributes:
        batch: its batch; None where the evaluation after a step failed.
        step, epoch, position: where training stood before it.
        lr: its learning rate.
    """

    batch: Batch | None
    step: int
    epoch: int
    position: int
    lr: float


class StepFailedError(NonFiniteError):
    """A loss or a gradient is NaN or infinite; `pending` is the step that changed nothing."""

    def __init__(self, reason: str, pending: PendingStep) -> None:
        super().__init__(reason)
        self.pending = pending


@dataclass
class TrainingSession:
    """One training in this process.

    Attributes:
        model, dataset, config, engine, context: what trains, on what, and how.
        directory: where reports, weights and checkpoints are written.
        data: the batches, stage by stage.
        budget: how long training lasts.
        state, timing: the state that checkpoints hold.
        fraction: progress through the budget, 0 to 1, the same in all processes.
        stop_signal: the number of a signal that any process received, or 0.
        is_between_steps: whether no step is unfinished, so that the state may be saved.
    """

    model: RecurrentLM
    dataset: TokenDataset
    config: TrainingConfig
    engine: Engine
    context: RunContext
    directory: RunDirectory
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
        """Whether there was a step since the last report."""
        return bool(self._pending or self.state.since_report.tokens)

    def learning_rate(self) -> float:
        """Return the learning rate of the next step."""
        return learning_rate(self.config, self.fraction) * self.state.lr_scale

    def decide(self, name: str, rule: Callable[[], bool]) -> None:
        """Let the first process decide something after every step, for all processes."""
        self._decisions[name] = rule

    def is_decided(self, name: str) -> bool:
        """Return what the first process decided after the last step."""
        return self._decided.get(name, False)

    def agree(self) -> None:
        """Share the first process's progress and decisions, and all signals, in one message."""
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
        """Read batches from the position in `state` on, in the sizes of the current stage."""
        self.budget.epoch_length = self.stream.epoch_length()
        self._batches = self.data.batches(self.state)

    def step(self) -> None:
        """Train on the next batch, or begin the next epoch.

        Raises:
            StepFailedError: the loss or a gradient of this or of a pending step is not finite.
        """
        batch = next(self._batches)
        if batch is None:
            self.agree()
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
        self.agree()
        self._show_progress()

    def collect(self) -> None:
        """Read the results of all pending steps.

        Raises:
            StepFailedError: the loss or a gradient of one of them is not finite.
        """
        pending, self._pending = self._pending, []
        for step, result in zip(pending, self.engine.synchronize(), strict=True):
            if result.failure is not None:
                raise StepFailedError(result.failure, step)
            self.state.since_report.add(result.nats, result.num_tokens, result.grad_norm, step.lr)

    def discard_pending(self) -> None:
        """Forget the steps whose results were not read, before an earlier state is loaded."""
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
