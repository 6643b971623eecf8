"""All settings of a run: frozen dataclasses, a docstring under each field.

The command line, `config.json` and the option tables of the docs are made from these classes, so
this is the only list of options in the project. Knows no torch: `recurra --help` must stay quick.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from reprlib import repr as shortened
from typing import Annotated, Any, Literal

import tyro

from recurra.checks import require, require_choices, require_types
from recurra.errors import ConfigError

CellName = Literal["rnn", "rnn-relu", "gru", "lstm", "none"]
BackendName = Literal["auto", "reference", "bptt", "library", "native"]
Precision = Literal["fp32", "bf16"]
TokenKind = Literal["char", "byte", "word", "bpe"]
Sampling = Literal["sequential", "random"]
UnknownRule = Literal["error", "replace"]

MAX_UNITS = 2**16
"""Largest width of a layer or an embedding; a file that asks for more is not from here."""
MAX_LAYERS = 256
MAX_VOCABULARY = 2**20
MAX_FLOAT = 3.4028234e38
"""The largest number of fp32."""
MAX_BUDGET = 10**12
"""Largest number of updates, epochs or minutes."""
MAX_BATCH = 2**24
"""Largest number of rows, and of steps, of one batch."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How a text becomes ids."""

    tokens: TokenKind = "char"
    """What one token is: a character, a byte, a word with the space before it, or a BPE piece."""

    vocab_size: int | None = None
    """Largest vocabulary to build, most frequent tokens first (bpe: 512 when not given)."""

    min_freq: int = 1
    """Tokens seen fewer times than this in the training part become <unk>."""

    letters_only: bool = False
    """The book's cleaning: every run of other characters than A-Z becomes one space, lower case,
    lines stripped and joined without a separator."""

    max_tokens: int | None = None
    """Use only this many tokens from the start of the text (bpe: characters)."""

    val_fraction: float = 0.1
    """Share of the text, taken from its end, that is kept for validation and never trained on."""

    encoding: str = "utf-8"
    """Encoding of the source files."""

    newlines: Literal["unify", "keep"] = "unify"
    """unify turns \\r\\n and lone \\r into \\n; keep leaves them. Byte tokens always keep."""

    separator: str = "\n"
    """What stands between two files when the source is several."""

    def __post_init__(self) -> None:
        require_types(self)
        require_choices(self, tokens=TokenKind, newlines=Literal["unify", "keep"])
        require(
            self.vocab_size is None or 2 <= self.vocab_size <= MAX_VOCABULARY,
            f"vocab_size must lie between 2 and {MAX_VOCABULARY}",
        )
        require(self.min_freq >= 1, "min_freq must be at least 1")
        require(self.max_tokens is None or self.max_tokens >= 2, "max_tokens must be at least 2")
        require(0.0 <= self.val_fraction < 1.0, "val_fraction must be at least 0 and below 1")
        require(
            not (self.letters_only and self.tokens == "byte"),
            "letters_only cleans text, and byte tokens are not text; choose one of the two",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: embedding or one-hot, stacked recurrent layers, output layer."""

    cell: CellName = "lstm"
    """The recurrence; none is the same network without a hidden state."""

    hidden_size: int = 256
    """Units in each layer."""

    vocab_size: Annotated[int, tyro.conf.Suppress] = 2
    """Rows of the input and output tables (set from the text when a run is trained)."""

    num_layers: int = 1
    """Recurrent layers, one above the other."""

    embedding_size: int = 64
    """Width of the learned input embedding; 0 feeds the one-hot vector, as the book does."""

    dropout: float = 0.0
    """Probability of dropping a unit between two layers."""

    tie_weights: bool = False
    """Use the embedding as the output layer's weight; needs embedding_size equal to hidden_size."""

    init: Literal["uniform", "normal", "orthogonal"] = "uniform"
    """First weights: torch's uniform, the book's normal(0, 0.01) with zero biases, or orthogonal
    recurrent matrices with uniform input weights."""

    forget_bias: float = 0.0
    """Added to the LSTM forget gate's first bias; 1 helps it to remember from the start."""

    backend: BackendName = "auto"
    """Who computes the recurrence."""

    precision: Precision = "fp32"
    """Number format of the matrix products; states, gradients and weights stay fp32."""

    def __post_init__(self) -> None:
        require_types(self)
        require_choices(
            self,
            cell=CellName,
            backend=BackendName,
            precision=Precision,
            init=Literal["uniform", "normal", "orthogonal"],
        )
        self._check_sizes()
        require(0.0 <= self.dropout < 1.0, "dropout must be at least 0 and below 1")
        require(
            not self.tie_weights or self.embedding_size == self.hidden_size,
            f"tie_weights needs embedding_size equal to hidden_size"
            f" ({self.embedding_size} and {self.hidden_size})",
        )
        require(abs(self.forget_bias) <= MAX_FLOAT, "forget_bias must be finite")
        require(
            self.forget_bias == 0.0 or self.cell == "lstm",
            f"forget_bias is for the lstm cell; {self.cell} has no forget gate",
        )

    def _check_sizes(self) -> None:
        require(self.hidden_size >= 1, "hidden_size must be at least 1")
        require(self.vocab_size >= 1, "vocab_size must be at least 1")
        require(self.num_layers >= 1, "num_layers must be at least 1")
        require(self.embedding_size >= 0, "embedding_size must be 0 (one-hot) or positive")
        largest = {
            "hidden_size": MAX_UNITS,
            "embedding_size": MAX_UNITS,
            "num_layers": MAX_LAYERS,
            "vocab_size": MAX_VOCABULARY,
        }
        for name, limit in largest.items():
            require(getattr(self, name) <= limit, f"{name} must be at most {limit:,}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the model learns, and for how long."""

    batch_size: int = 32
    """Streams (sequential) or windows (random) in one batch; several processes share them."""

    num_steps: int = 64
    """Tokens in one window, through which the gradient flows back."""

    sampling: Sampling = "sequential"
    """sequential carries the state from batch to batch; random starts every window from zero."""

    bptt: Literal["truncated", "full", "randomized"] = "truncated"
    """How far gradients go back: num_steps; the whole epoch (one update each); or a random,
    unbiased number of steps with mean num_steps."""

    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    """The update rule."""

    lr: float = 4e-3
    """Peak learning rate."""

    momentum: float = 0.0
    """SGD's momentum."""

    weight_decay: float = 0.0
    """Decoupled for adamw, added to the gradient for sgd and adam; biases are spared."""

    schedule: Literal["constant", "step", "cosine"] = "cosine"
    """The learning rate against the budget."""

    warmup: float = 0.02
    """Share of the budget over which the learning rate rises from 0."""

    final_lr: float = 0.05
    """Where the cosine ends, as a share of lr."""

    lr_milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of the budget at which the step schedule multiplies lr by lr_decay."""

    lr_decay: float = 0.1
    """The step schedule's factor."""

    clip_norm: float | None = 1.0
    """Largest L2 norm of all gradients together; None to switch clipping off."""

    clip_value: float | None = None
    """Largest absolute value of one gradient entry (applied before clip_norm)."""

    epochs: float | None = None
    """Budget: passes over the training part."""

    steps: int | None = None
    """Budget: updates."""

    minutes: float | None = None
    """Budget: wall-clock minutes for everything, evaluation and saving included (2 when no budget
    of any kind is given)."""

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
        require_choices(
            self,
            sampling=Sampling,
            bptt=Literal["truncated", "full", "randomized"],
            optimizer=Literal["sgd", "adam", "adamw"],
            schedule=Literal["constant", "step", "cosine"],
            on_nan=Literal["stop", "rollback"],
        )
        self._check_sizes()
        self._check_rates()
        given = [n for n in ("epochs", "steps", "minutes") if getattr(self, n) is not None]
        require(len(given) <= 1, f"one budget, please, not several: {' and '.join(given)}")
        for name in given:
            require(0 < getattr(self, name) <= MAX_BUDGET, f"{name} must lie between 0 and 1e12")
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

    def _check_rates(self) -> None:
        require(0 < self.lr < math.inf, "lr must be positive and finite")
        within = all(0.0 <= milestone <= 1.0 for milestone in self.lr_milestones)
        require(within, "lr_milestones are shares of the budget, between 0 and 1")
        for name in ("momentum", "warmup", "final_lr"):
            require(0.0 <= getattr(self, name) <= 1.0, f"{name} must lie between 0 and 1")
        require(0 <= self.weight_decay < math.inf, "weight_decay must be finite, not negative")
        require(0 < self.lr_decay <= MAX_FLOAT, "lr_decay must be positive and finite")
        for name in ("clip_norm", "clip_value"):
            value = getattr(self, name)
            require(
                value is None or 0 < value <= MAX_FLOAT,
                f"{name} must be positive and at most {MAX_FLOAT:.4g}, or None",
            )
        temperature = self.sample_temperature
        require(0 <= temperature < math.inf, "sample_temperature must be finite, not negative")
        require(0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1")


_SCHEDULE_OPTIONS = {"final_lr": "cosine", "lr_milestones": "step", "lr_decay": "step"}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything needed to rebuild a model and repeat its training."""

    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        require(
            self.training.bptt != "randomized" or self.model.backend != "library",
            "bptt randomized scales gradients, which the library backend cannot; take another",
        )

    def ignored(self) -> list[str]:
        """What was set and has no effect beside the other settings, a sentence each."""
        text, model, training = self.text, self.model, self.training
        found = []
        if model.dropout and model.num_layers == 1:
            found.append("dropout works between layers, and there is only one")
        if training.momentum and training.optimizer != "sgd":
            found.append(f"momentum is for sgd; {training.optimizer} has its own")
        for name, schedule in _SCHEDULE_OPTIONS.items():
            default = getattr(TrainingConfig(), name)
            if training.schedule != schedule and getattr(training, name) != default:
                found.append(f"{name} is for the {schedule} schedule, not for {training.schedule}")
        if text.tokens == "byte":
            for name in ("encoding", "newlines"):
                if getattr(text, name) != getattr(TextConfig(), name):
                    found.append(f"{name} has no meaning for byte tokens")
        return found

    @classmethod
    def from_options(cls, **options: Any) -> RunConfig:
        """Sort flat options into their sections.

        `vocab_size` goes to the text: the model's own size follows from the vocabulary.

        Raises:
            ConfigError: an unknown name (the nearest known one is suggested) or a wrong value.
        """
        sections = {"text": TextConfig, "model": ModelConfig, "training": TrainingConfig}
        owner = {
            f.name: section
            for section, kind in reversed(sections.items())
            for f in dataclasses.fields(kind)
        }
        sorted_options: dict[str, dict[str, Any]] = {name: {} for name in sections}
        for name, value in options.items():
            if name not in owner:
                near = difflib.get_close_matches(name, owner, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ConfigError(f"unknown option {name!r}{hint}")
            sorted_options[owner[name]][name] = value
        return cls(**{name: kind(**sorted_options[name]) for name, kind in sections.items()})

    def to_dict(self) -> dict[str, Any]:
        """As nested plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a section or field is unknown, missing its type, or out of range.
        """
        sections = {"text": TextConfig, "model": ModelConfig, "training": TrainingConfig}
        built = {}
        for name, kind in sections.items():
            section = values.get(name)
            if not isinstance(section, dict):
                raise ConfigError(f"config section {name!r} is missing")
            known = {f.name for f in dataclasses.fields(kind)}
            unknown = set(section) - known
            require(not unknown, f"config section {name!r} has unknown fields {shortened(unknown)}")
            # JSON has lists where the dataclasses have tuples.
            tidy = {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}
            try:
                built[name] = kind(**tidy)
            except TypeError as error:
                raise ConfigError(f"config section {name!r}: {error}") from error
        return cls(**built)
