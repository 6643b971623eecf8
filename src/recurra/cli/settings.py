"""The training options that several commands share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from recurra.cli.parsing import decode_argument
from recurra.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Settings(RunConfig):
    """The text, model and training options as the command line gives them."""

    def to_config(self) -> RunConfig:
        """Return the configuration of a run, with its texts decoded."""
        text = dataclasses.replace(self.text, separator=decode_argument(self.text.separator))
        prompts = tuple(map(decode_argument, self.training.prompt))
        training = dataclasses.replace(self.training, prompt=prompts)
        return RunConfig(text=text, model=self.model, training=training)
