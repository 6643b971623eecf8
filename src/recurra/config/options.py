"""`RunOptions`: the settings given by the user; all others are still unspecified."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from recurra.config.run import OWNER, RunConfig
from recurra.errors import ConfigError

_LIMITED_BY_DEFAULT = ("clip_norm", "max_epochs")
"""Settings for which None is ambiguous: it could mean unspecified or no limit."""


@dataclass(frozen=True)
class RunOptions:
    """The settings of a run that the user gave; `training/recipe.py` chooses the others.

    Attributes:
        values: the given settings by name, without sections.
        vocab_size: the size of the vocabulary; None until the text has been read.
        num_parameters: the approximate number of parameters of the model; None for the hidden size
            that is given or chosen otherwise.

    Examples:
        >>> from recurra.config import RunOptions
        >>> options = RunOptions.of(cell="gru", lr=None)
        >>> options.is_given("cell"), options.is_given("lr")
        (True, False)
        >>> options.config.training.lr
        0.004
    """

    values: Mapping[str, Any]
    vocab_size: int | None = None
    num_parameters: int | None = None

    @classmethod
    def of(cls, /, **options: Any) -> RunOptions:
        """Return options from keyword arguments; an argument that is None counts as not given.

        Raises:
            ConfigError: a name is unknown, a value is invalid, or `clip_norm` or `max_epochs` is
                None, where 0 means no limit.
        """
        return _checked(cls(given_values(options)))

    @classmethod
    def from_config(cls, config: RunConfig) -> RunOptions:
        """Return options that give every setting of a configuration."""
        sections = config.to_dict()
        return cls({name: sections[section][name] for name, section in OWNER.items()})

    def filled(self, **settings: Any) -> RunOptions:
        """Return a copy with these settings added; settings that are already given are kept."""
        chosen = {name: value for name, value in settings.items() if value is not None}
        return dataclasses.replace(self, values={**chosen, **self.values})

    def replaced(self, **settings: Any) -> RunOptions:
        """Return a copy with these settings; they replace settings that are already given.

        Raises:
            ConfigError: a name is unknown, or a value or a combination is invalid.
        """
        return _checked(dataclasses.replace(self, values={**self.values, **settings}))

    def with_vocab_size(self, size: int) -> RunOptions:
        """Return a copy for a text with a vocabulary of this size."""
        return dataclasses.replace(self, vocab_size=size)

    def is_given(self, name: str) -> bool:
        """Return whether the user gave a setting."""
        return name in self.values

    @property
    def is_complete(self) -> bool:
        """Whether every setting is given."""
        return self.values.keys() == OWNER.keys()

    @cached_property
    def config(self) -> RunConfig:
        """The configuration; settings that are not given have their defaults."""
        config = RunConfig.from_options(**self.values)
        if self.vocab_size is None:
            return config
        model = dataclasses.replace(config.model, vocab_size=self.vocab_size)
        return dataclasses.replace(config, model=model)


def given_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are not None.

    Raises:
        ConfigError: `clip_norm` or `max_epochs` is None, where 0 means no limit.
    """
    for name in _LIMITED_BY_DEFAULT:
        if name in options and options[name] is None:
            raise ConfigError(
                f"{name} is None; omit it for the default, or set it to 0 for no limit"
            )
    return {name: value for name, value in options.items() if value is not None}


def _checked(options: RunOptions) -> RunOptions:
    _ = options.config  # Raises an error for an unknown name or an invalid value.
    return options
