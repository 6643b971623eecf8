"""`RunOptions`: the settings that the user gave, before the others are chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from recurra.config.run import OWNER, RunConfig
from recurra.errors import ConfigError

_LIMITED_BY_DEFAULT = ("clip_norm", "max_epochs")
"""Settings for which None would be ambiguous: not given, or no limit."""


@dataclass(frozen=True)
class RunOptions:
    """The settings of a run that were given; `training/recipe.py` chooses the others.

    Attributes:
        values: the given settings by name, without sections.
        vocab_size: the size of the vocabulary, once the text has been read.
    """

    values: Mapping[str, Any]
    vocab_size: int | None = None

    @classmethod
    def of(cls, **options: Any) -> RunOptions:
        """Return the options among the arguments: those that are not None.

        Raises:
            ConfigError: an unknown name, an invalid value, or None where 0 means no limit.
        """
        for name in _LIMITED_BY_DEFAULT:
            if name in options and options[name] is None:
                raise ConfigError(
                    f"{name} is None; leave it out for the default, or set 0 for no limit"
                )
        return _checked(cls({name: v for name, v in options.items() if v is not None}))

    @classmethod
    def from_config(cls, config: RunConfig) -> RunOptions:
        """Return options in which every setting of a configuration is given."""
        sections = config.to_dict()
        return cls({name: sections[section][name] for name, section in OWNER.items()})

    def filled(self, **settings: Any) -> RunOptions:
        """Return options with these settings in addition; those that were given stay unchanged."""
        chosen = {name: value for name, value in settings.items() if value is not None}
        return dataclasses.replace(self, values={**chosen, **self.values})

    def replaced(self, **settings: Any) -> RunOptions:
        """Return options with these settings, also in place of those that were given.

        Raises:
            ConfigError: an unknown name, or an invalid value or combination.
        """
        return _checked(dataclasses.replace(self, values={**self.values, **settings}))

    def with_vocab_size(self, size: int) -> RunOptions:
        """Return options for a text with a vocabulary of this size."""
        return dataclasses.replace(self, vocab_size=size)

    def is_given(self, name: str) -> bool:
        """Return whether a setting was given."""
        return name in self.values

    @property
    def is_complete(self) -> bool:
        """Whether every setting was given."""
        return self.values.keys() == OWNER.keys()

    @cached_property
    def config(self) -> RunConfig:
        """The configuration in which settings that were not given have their defaults."""
        config = RunConfig.from_options(**self.values)
        if self.vocab_size is None:
            return config
        model = dataclasses.replace(config.model, vocab_size=self.vocab_size)
        return dataclasses.replace(config, model=model)


def _checked(options: RunOptions) -> RunOptions:
    _ = options.config  # Raises an error for an unknown name or an invalid value.
    return options
