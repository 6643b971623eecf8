"""`Provenance`: where a run comes from, as recorded in `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any

from recurra.config.checks import require

BASE_FIELDS = ("run", "weights_sha256", "sources", "text_sha256", "new_tokens")
"""The record of the base of a fine-tuned run: the path of the run, the SHA-256 of its weights, its
text, and the tokens that were added to its vocabulary."""


@dataclass(frozen=True)
class Provenance:
    """The origin of a run; it has no effect on the training.

    Attributes:
        sources: the sources of the text, as specified by the user.
        commands: the command lines that created and resumed the run; empty for Python.
        base: with the fields `BASE_FIELDS`, the run whose weights were fine-tuned; None without.
    """

    sources: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    base: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, without those that are empty except `sources`."""
        fields: dict[str, Any] = {"sources": list(self.sources)}
        if self.commands:
            fields["commands"] = list(self.commands)
        if self.base is not None:
            fields["base"] = dict(self.base)
        return fields

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """Return the provenance in a record that `to_dict` wrote; missing fields are empty.

        Raises:
            ConfigError: a field has another type. The message names the field.
        """
        lists = {name: values.get(name, []) for name in ("sources", "commands")}
        for name, value in lists.items():
            is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
            require(is_list, f"{name} is {shortened(value)}; it must be a list of strings")
        base = values.get("base")
        require(base is None or isinstance(base, dict), f"base is {shortened(base)}, not an object")
        return cls(base=base, **{name: tuple(value) for name, value in lists.items()})

    def with_command(self, command: str | None) -> Provenance:
        """Return a copy with a command added; None adds nothing."""
        if command is None:
            return self
        return dataclasses.replace(self, commands=(*self.commands, command))
