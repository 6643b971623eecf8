"""The weights file of a model, `model.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from recurra.config import ModelConfig
from recurra.io.files import replace_bytes
from recurra.io.tensors import read_tensor_file, to_bytes
from recurra.model.recurrent_lm import RecurrentLM, parameter_specs


def weights_to_bytes(model: nn.Module, record: dict[str, Any]) -> bytes:
    """The file of a model's weights; `record` goes into its header as JSON."""
    return to_bytes(dict(model.state_dict()), record)


def save_weights(file: Path, model: nn.Module, record: dict[str, Any]) -> None:
    """Write a model's weights, whole or not at all."""
    replace_bytes(file, weights_to_bytes(model, record))


def load_weights(file: Path, model: RecurrentLM) -> dict[str, Any]:
    """Read weights into a model and return the record that was saved with them.

    Raises:
        RunError: the file is missing or damaged, or its names or shapes are not the model's.
    """
    tensors, record = read_tensor_file(file, parameter_specs(model.config))
    model.load_state_dict(tensors)
    return record


def load_model(file: Path, config: ModelConfig) -> RecurrentLM:
    """Make a model from its file; nothing of its size is made before the file was checked.

    Raises:
        RunError: as `load_weights`.
    """
    tensors, _ = read_tensor_file(file, parameter_specs(config))
    model = RecurrentLM(config)
    model.load_state_dict(tensors)
    return model
