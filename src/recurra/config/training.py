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

_LIMITS = ("clip_norm", "clip_value", "max_epochs")
"""Settings whose value 0 means no limit. It is stored as None."""

MAX_BUDGET = 10**12
"""Largest number of updates, epochs or minutes."""
MAX_BATCH = 2**24
"""Largest number of rows, and of steps, of one batch."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the model learns, and for how long."""

    batch_size: int = 32
    """Streams (sequential) or windows (random) in one batch; several processes share them."""

    num_steps: int = 64
    """Tokens in one window, through which the gradient flows back."""

    batch_growth: int = 1
    """Begin with a batch this many times smaller, and double it in equal stages of the budget; a
    power of 2."""

    window_growth: int = 1
    """Begin with windows this many times shorter, and double them likewise."""

    sampling: Sampling = "sequential"
    """sequential carries the state from batch to batch; random starts every window from zero."""

    bptt: Literal["truncated", "full", "randomized"] = "truncated"
    """How far gradients go back: num_steps; the whole epoch (one update each); or a random,
    unbiased number of steps with mean num_steps."""

    optimizer: OptimizerName = "adamw"
    """The update rule."""

    lr: float = 4e-3
    """Peak learning rate."""

    momentum: float = 0.0
    """SGD's momentum."""

    weight_decay: float = 0.0
    """Decoupled for adamw, added to the gradient for sgd and adam; biases are spared."""

    weight_averaging: float = 0.0
    """Decay of a moving average of the weights, per update; the average is what is validated, saved
    and sampled from. 0 for none; 0.999 averages about the last thousand."""

    schedule: Schedule = "cosine"
    """The learning rate against the budget."""

    warmup: float = 0.02
    """Share of the budget over which the learning rate rises, from 0 (one-cycle: from lr / 25,
    along half a cosine)."""

    final_lr: float = 0.05
    """Where cosine, linear and one-cycle end, as a share of lr."""

    lr_milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of the budget at which the step schedule multiplies lr by lr_decay."""

    lr_decay: float = 0.1
    """The step schedule's factor."""

    clip_norm: float | None = 1.0
    """Largest L2 norm of all gradients together; 0 switches clipping off."""

    clip_value: float | None = None
    """Largest absolute value of one gradient entry, applied before clip_norm; 0 for no limit."""

    epochs: float | None = None
    """Budget: passes over the training part."""

    steps: int | None = None
    """Budget: updates."""

    minutes: float | None = None
    """Budget: wall-clock minutes for everything, evaluation and saving included (2 when no budget
    of any kind is given). With it, all settings that are not given are chosen for the text, the
    minutes and this machine, whatever stands here as their default; three lines say what and
    why."""

    max_epochs: float | None = None
    """Largest number of passes over the training part within a budget in minutes; by default 100,
    because further epochs overfit; 0 for no limit."""

    patience: int | None = None
    """Stop after this many reports in a row without a better validation loss."""

    report_every: int | None = None
    """Updates between two reports (validation, checkpoint); by default one for each twentieth of
    the budget."""

    checkpoint_every: int | None = None
    """Updates between two checkpoints; by default one at reports and every half minute, but so that
    they take no more than about a hundredth of the time."""

    on_nan: Literal["stop", "rollback"] = "stop"
    """What to do when a loss or gradient is NaN or infinite: stop before the update, or go back to
    the last report's checkpoint with half the learning rate, three times at most."""

    sample_every: int | None = None
    """At least this many updates between two samples of generated text, which come with a report;
    by default with every one."""

    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What the samples start from; may be given several times. Without one they start from
    nothing."""

    sample_length: int = 120
    """Tokens in one sample."""

    sample_temperature: float = 0.8
    """Temperature of the samples; 0 is greedy."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    threads: int | None = None
    """CPU threads; by default what torch chooses."""

    seed: int = 1
    """Every random number of the run comes from it."""

    plot: bool = False
    """Write loss.svg beside the run (plot extra)."""

    def __post_init__(self) -> None:
        if isinstance(self.prompt, str):
            # One prompt is as clear as a tuple of one.
            object.__setattr__(self, "prompt", (self.prompt,))
        require_types(self)
        for name in _LIMITS:
            if getattr(self, name) == 0:
                object.__setattr__(self, name, None)
        require_choices(
            self,
            sampling=Sampling,
            bptt=Literal["truncated", "full", "randomized"],
            schedule=Schedule,
            on_nan=Literal["stop", "rollback"],
        )
        require_known("optimizer", self.optimizer, OPTIMIZERS)
        self._check_sizes()
        self._check_growth()
        self._check_rates()
        given = [n for n in ("epochs", "steps", "minutes") if getattr(self, n) is not None]
        require(len(given) <= 1, f"specify only one budget: {' and '.join(given)}")
        for name in ("epochs", "steps", "minutes", "max_epochs"):
            value = getattr(self, name)
            within = value is None or 0 < value <= MAX_BUDGET
            require(within, f"{name} must be above 0 and at most 1e12")
        require(
            self.max_epochs is None or (self.epochs is None and self.steps is None),
            "max_epochs limits a budget in minutes; steps and epochs are limits themselves",
        )
        require(
            self.bptt == "truncated" or self.sampling == "sequential",
            f"bptt {self.bptt} follows the text through time; it needs sequential sampling",
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
        require(self.bptt != "randomized" or self.num_steps >= 2, "randomized needs num_steps >= 2")

    def _check_growth(self) -> None:
        for name, of in (("batch_growth", "batch_size"), ("window_growth", "num_steps")):
            factor, size = getattr(self, name), getattr(self, of)
            is_power = factor >= 1 and factor & (factor - 1) == 0
            require(is_power, f"{name} must be 1, 2, 4, 8 and so on, not {factor}")
            require(size % factor == 0, f"{of} {size} cannot be divided by {name} {factor}")
        if self.batch_growth == self.window_growth == 1:
            return
        require(self.epochs is None, "batches that grow need a budget in minutes or steps")
        require(self.bptt == "truncated", f"batches that grow do not go with bptt {self.bptt}")

    def _check_rates(self) -> None:
        require(0 < self.lr < math.inf, "lr must be positive and finite")
        within = all(0.0 <= milestone <= 1.0 for milestone in self.lr_milestones)
        require(within, "lr_milestones are shares of the budget, between 0 and 1")
        for name in ("momentum", "warmup", "final_lr"):
            require(0.0 <= getattr(self, name) <= 1.0, f"{name} must lie between 0 and 1")
        averaging = self.weight_averaging
        require(0.0 <= averaging < 1.0, "weight_averaging must be at least 0 and below 1")
        require(0 <= self.weight_decay < math.inf, "weight_decay must be finite, not negative")
        require(0 < self.lr_decay <= MAX_FLOAT, "lr_decay must be positive and finite")
        for name in ("clip_norm", "clip_value"):
            value = getattr(self, name)
            require(
                value is None or 0 < value <= MAX_FLOAT,
                f"{name} must be positive and at most {MAX_FLOAT:.4g}, or 0 for no limit",
            )
        temperature = self.sample_temperature
        require(0 <= temperature < math.inf, "sample_temperature must be finite, not negative")
        require(0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1")
