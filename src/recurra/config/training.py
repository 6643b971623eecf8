"""Configuration of training: optimizer, schedule, budget and evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from recurra.config.checks import (
    MAX_FLOAT,
    require,
    require_choices,
    require_known,
    require_types,
)
from recurra.config.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]

Sampling = Literal["sequential", "random"]

Schedule = Literal["constant", "step", "cosine", "linear", "one-cycle"]

BUDGETS = ("epochs", "steps", "minutes")
"""The settings that can be the budget of a run; at most one of them is set."""

LIMITS = ("clip_norm", "clip_value", "max_epochs")
"""Settings for which 0 means no limit; 0 is stored as None."""

MAX_BUDGET = 10**12
"""Maximum number of updates, epochs or minutes."""
MAX_BATCH = 2**24
"""Maximum batch size, and maximum number of steps in a window."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimizer, schedule, budget and evaluation of a training run.

    Examples:
        >>> from recurra.config import TrainingConfig
        >>> config = TrainingConfig(steps=1000, optimizer="sgd", lr=1.0, clip_norm=0)
        >>> config.clip_norm is None
        True
    """

    batch_size: int = 32
    """Number of streams (sequential sampling) or windows (random sampling) in a batch. With several
    processes, it is the total over all of them."""

    num_steps: int = 64
    """Number of tokens in a window. With truncated bptt, gradients flow back through one window."""

    batch_growth: int = 1
    """Factor by which the batch size grows during training; a power of 2. Training starts with
    batch_size divided by this factor and doubles the batch size in equal stages of the budget."""

    window_growth: int = 1
    """Factor by which num_steps grows during training; a power of 2. See batch_growth."""

    sampling: Sampling = "sequential"
    """How windows are drawn from the text: sequential carries the hidden state from one batch to
    the next; random starts each window from a zero state."""

    bptt: Literal["truncated", "full", "randomized"] = "truncated"
    """Backpropagation through time: truncated stops gradients after num_steps; full uses the whole
    epoch and makes one update per epoch; randomized draws the truncation length, with mean
    num_steps, and keeps the gradient unbiased."""

    optimizer: OptimizerName = "adamw"
    """Optimizer."""

    lr: float = 4e-3
    """Peak learning rate."""

    momentum: float = 0.0
    """Momentum of sgd; the other optimizers ignore it."""

    weight_decay: float = 0.0
    """Weight decay: decoupled for adamw, added to the gradient for sgd and adam. Biases and
    normalization weights are not decayed."""

    weight_averaging: float = 0.0
    """Decay per update of an exponential moving average (EMA) of the weights. The average is
    validated, saved and used for samples. 0 disables averaging; 0.999 averages over about the last
    1,000 updates."""

    schedule: Schedule = "cosine"
    """Learning rate schedule; its progress is the fraction of the budget that is used."""

    warmup: float = 0.02
    """Fraction of the budget during which the learning rate rises linearly from 0 to lr. The
    one-cycle schedule rises from lr / 25 along half a cosine."""

    final_lr: float = 0.05
    """Final learning rate of the cosine, linear and one-cycle schedules, as a fraction of lr."""

    lr_milestones: tuple[float, ...] = (0.5, 0.75)
    """Fractions of the budget at which the step schedule multiplies the learning rate by
    lr_decay."""

    lr_decay: float = 0.1
    """Factor of the step schedule at each milestone."""

    clip_norm: float | None = 1.0
    """Maximum global L2 norm of the gradients; 0 disables clipping by norm."""

    clip_value: float | None = None
    """Maximum absolute value of a gradient element, applied before clip_norm; 0 means no limit."""

    epochs: float | None = None
    """Budget: number of epochs (passes over the training split); may be fractional."""

    steps: int | None = None
    """Budget: number of updates."""

    minutes: float | None = None
    """Budget: wall-clock minutes, including evaluation and saving, but not the first build of the
    kernels; 2 if no budget is given. With a time budget, unspecified sizes, rates, precision,
    initialization and schedule are chosen from the text, the budget and the measured speed of this
    machine instead of the listed defaults."""

    max_epochs: float | None = None
    """Maximum number of epochs with a budget in minutes (default 100, because further epochs
    overfit); 0 means no limit."""

    patience: int | None = None
    """Early stopping: stop after this many consecutive evaluations without a lower validation
    loss."""

    report_every: int | None = None
    """Number of updates between two evaluations; by default, 20 evaluations over the
    budget."""

    checkpoint_every: int | None = None
    """Number of updates between two checkpoints; by default, one after each evaluation and every 30
    seconds, limited to about 1% of the training time."""

    on_nan: Literal["stop", "rollback"] = "stop"
    """Action when the loss or a gradient is NaN or infinite: stop ends training before the update;
    rollback returns to the checkpoint of the last evaluation with half the learning rate, at most
    three times."""

    sample_every: int | None = None
    """Minimum number of updates between two generated samples. Samples are generated only at
    evaluations; by default, at each one."""

    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Prompt of a generated sample; may be repeated. Without a prompt, samples start from a zero
    state."""

    sample_length: int = 120
    """Number of tokens in a generated sample."""

    sample_temperature: float = 0.8
    """Temperature of the generated samples; 0 means greedy decoding."""

    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:N or mps. With auto, a few training steps are measured when the
    run is created, and a GPU is used only if it is faster than the CPU."""

    threads: int | None = None
    """Number of CPU threads; by default, one per physical core that the process may use (see
    `recurra doctor`)."""

    seed: int = 1
    """Seed of all random numbers of the run."""

    plot: bool = False
    """Plot the loss to loss.svg in the run directory; requires the plot extra."""

    def __post_init__(self) -> None:
        if isinstance(self.prompt, str):
            # A single string is accepted as a tuple of one prompt.
            object.__setattr__(self, "prompt", (self.prompt,))
        require_types(self)
        for name in LIMITS:
            if getattr(self, name) == 0:
                object.__setattr__(self, name, None)
        require_choices(
            self,
            sampling=Sampling,
            bptt=Literal["truncated", "full", "randomized"],
            schedule=Schedule,
            on_nan=Literal["stop", "rollback"],
        )
        require_known("optimizer", self.optimizer, OPTIMIZERS, "recurra.register_optimizer")
        self._check_sizes()
        self._check_growth()
        self._check_rates()
        given = [n for n in BUDGETS if getattr(self, n) is not None]
        require(len(given) <= 1, f"specify only one budget: {' and '.join(given)}")
        for name in (*BUDGETS, "max_epochs"):
            value = getattr(self, name)
            within = value is None or 0 < value <= MAX_BUDGET
            require(within, f"{name} is {value}; it must be greater than 0 and at most 1e12")
        require(
            self.max_epochs is None or (self.epochs is None and self.steps is None),
            "max_epochs only applies to a budget in minutes; remove it, or remove steps or epochs",
        )
        require(
            self.bptt == "truncated" or self.sampling == "sequential",
            f"bptt={self.bptt} requires sampling=sequential, not {self.sampling}",
        )

    def _check_sizes(self) -> None:
        for name in ("batch_size", "num_steps", "sample_length"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1")
            require(getattr(self, name) <= MAX_BATCH, f"{name} must be at most {MAX_BATCH:,}")
        require(self.threads is None or self.threads <= 1024, "threads must be at most 1024")
        for name in ("patience", "report_every", "sample_every", "checkpoint_every", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1")
            require(value is None or value <= MAX_BUDGET, f"{name} must be at most 1e12")
        require(
            self.bptt != "randomized" or self.num_steps >= 2,
            "bptt=randomized requires num_steps >= 2",
        )

    def _check_growth(self) -> None:
        for name, of in (("batch_growth", "batch_size"), ("window_growth", "num_steps")):
            factor, size = getattr(self, name), getattr(self, of)
            is_power = factor >= 1 and factor & (factor - 1) == 0
            require(is_power, f"{name} is {factor}; it must be a power of 2")
            require(size % factor == 0, f"{of} ({size}) must be divisible by {name} ({factor})")
        if self.batch_growth == self.window_growth == 1:
            return
        require(
            self.epochs is None,
            "batch_growth and window_growth require a budget in minutes or steps, not epochs",
        )
        require(
            self.bptt == "truncated",
            f"batch_growth and window_growth require bptt=truncated, not {self.bptt}",
        )

    def _check_rates(self) -> None:
        require(0 < self.lr < math.inf, f"lr is {self.lr}; it must be positive and finite")
        within = all(0.0 <= milestone <= 1.0 for milestone in self.lr_milestones)
        require(within, "lr_milestones must be fractions of the budget between 0 and 1")
        for name in ("momentum", "warmup", "final_lr"):
            require(0.0 <= getattr(self, name) <= 1.0, f"{name} must be between 0 and 1")
        averaging = self.weight_averaging
        require(0.0 <= averaging < 1.0, "weight_averaging must be at least 0 and less than 1")
        require(0 <= self.weight_decay < math.inf, "weight_decay must be finite and not negative")
        require(0 < self.lr_decay <= MAX_FLOAT, "lr_decay must be positive and finite")
        for name in ("clip_norm", "clip_value"):
            value = getattr(self, name)
            require(
                value is None or 0 < value <= MAX_FLOAT,
                f"{name} is {value}; it must be positive and at most {MAX_FLOAT:.4g},"
                " or 0 for no limit",
            )
        temperature = self.sample_temperature
        require(0 <= temperature < math.inf, "sample_temperature must be finite and not negative")
        require(0 <= self.seed < 2**63, "seed must be between 0 and 2**63 - 1")
