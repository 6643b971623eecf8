"""The training options that several commands share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from recurra.cli.parsing import typed
from recurra.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Settings(RunConfig):
    """Options of a text, a model and its training, as they were typed."""

    def to_config(self) -> RunConfig:
        """As a run has them."""
        text = dataclasses.replace(self.text, separator=typed(self.text.separator))
        prompts = tuple(map(typed, self.training.prompt))
        training = dataclasses.replace(self.training, prompt=prompts)
        return RunConfig(text=text, model=self.model, training=training)
