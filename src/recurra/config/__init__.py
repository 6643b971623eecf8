"""The configuration of a run: frozen dataclasses with a docstring for each field.

The command line, `config.json` and the option tables in the docs are generated from these classes.
The package does not import torch, so that `recurra --help` stays fast.
"""

from recurra.config.model import MAX_LAYERS, MAX_UNITS, CellName, ModelConfig, PrecisionName
from recurra.config.options import RunOptions
from recurra.config.run import RunConfig
from recurra.config.text import MAX_VOCABULARY, TextConfig, TokenKind, UnknownRule
from recurra.config.training import TrainingConfig

__all__ = [
    "MAX_LAYERS",
    "MAX_UNITS",
    "MAX_VOCABULARY",
    "CellName",
    "ModelConfig",
    "PrecisionName",
    "RunConfig",
    "RunOptions",
    "TextConfig",
    "TokenKind",
    "TrainingConfig",
    "UnknownRule",
]
