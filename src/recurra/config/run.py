"""The complete configuration of a run, as stored in `config.json`."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from reprlib import repr as shortened
from typing import Any

from recurra.config.checks import require
from recurra.config.model import ModelConfig
from recurra.config.optimizers import OPTIMIZERS
from recurra.config.text import TextConfig
from recurra.config.training import TrainingConfig
from recurra.errors import ConfigError

_SECTIONS = {"text": TextConfig, "model": ModelConfig, "training": TrainingConfig}
OWNER = {
    f.name: section
    for section, kind in reversed(_SECTIONS.items())
    for f in dataclasses.fields(kind)
}
"""The section of each option.

`vocab_size` belongs to the text section; that of the model section is derived from it.
"""
_SCHEDULE_OPTIONS = {
    "final_lr": ("cosine", "linear", "one-cycle"),
    "lr_milestones": ("step",),
    "lr_decay": ("step",),
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings that are needed to rebuild a model and to repeat its training.

    Examples:
        >>> from recurra.config import RunConfig
        >>> config = RunConfig.from_options(tokens="byte", cell="gru", lr=0.01)
        >>> config.text.tokens, config.model.cell, config.training.lr
        ('byte', 'gru', 0.01)
        >>> RunConfig.from_dict(config.to_dict()) == config
        True
    """

    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        require(
            self.training.bptt != "randomized" or self.model.backend != "library",
            "bptt=randomized scales gradients, which backend=library does not support",
        )

    def ignored(self) -> list[str]:
        """Return a message for each setting that has no effect in combination with the others."""
        text, model, training = self.text, self.model, self.training
        found = []
        if model.dropout and model.num_layers == 1 and not model.residual:
            found.append("dropout has no effect with a single layer; use output_dropout")
        if model.locked_dropout and not (model.dropout or model.output_dropout):
            found.append("locked_dropout has no effect because dropout and output_dropout are 0")
        if training.momentum and "momentum" not in OPTIMIZERS[training.optimizer].options:
            found.append(
                f"momentum has no effect with optimizer={training.optimizer}, only with sgd"
            )
        for name, schedules in _SCHEDULE_OPTIONS.items():
            default = getattr(TrainingConfig(), name)
            if training.schedule not in schedules and getattr(training, name) != default:
                kinds = ", ".join(schedules)
                found.append(
                    f"{name} has no effect with schedule={training.schedule}; it applies to {kinds}"
                )
        if text.tokens == "byte":
            for name in ("encoding", "newlines"):
                if getattr(text, name) != getattr(TextConfig(), name):
                    found.append(f"{name} has no effect with byte tokens")
        return found

    @classmethod
    def from_options(cls, /, **options: Any) -> RunConfig:
        """Return a configuration from options without sections.

        `vocab_size` sets the text section; that of the model is derived from the vocabulary.

        Raises:
            ConfigError: a name is unknown (the message suggests a similar one) or a value is
                invalid.
        """
        sorted_options: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
        for name, value in options.items():
            if name not in OWNER:
                near = difflib.get_close_matches(name, OWNER, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ConfigError(f"unknown option {name!r}{hint}")
            sorted_options[OWNER[name]][name] = value
        return cls(**{name: kind(**sorted_options[name]) for name, kind in _SECTIONS.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as nested dictionaries for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Return the configuration from nested dictionaries, as written by `to_dict`.

        Raises:
            ConfigError: a section is missing, a field is unknown, or a value is invalid.
        """
        built = {}
        for name, kind in _SECTIONS.items():
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
