"""Read and write the weights file of a model, `model.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from recurra.config import ModelConfig
from recurra.io.files import replace_bytes
from recurra.io.tensors import read_tensor_file, to_bytes
from recurra.model.recurrent_lm import RecurrentLM, parameter_specs


def weights_to_bytes(model: nn.Module, record: dict[str, Any]) -> bytes:
    """Return the contents of a weights file, with `record` as JSON in its header."""
    return to_bytes(dict(model.state_dict()), record)


def save_weights(file: Path, model: nn.Module, record: dict[str, Any]) -> None:
    """Write the weights of a model atomically."""
    replace_bytes(file, weights_to_bytes(model, record))


def load_weights(file: Path, model: RecurrentLM) -> dict[str, Any]:
    """Read weights into a model and return the record that was saved with them.

    Raises:
        RunError: if the file is missing or damaged, or does not match the model.
    """
    tensors, record = read_tensor_file(file, parameter_specs(model.config))
    model.load_state_dict(tensors)
    return record


def load_model(file: Path, config: ModelConfig) -> RecurrentLM:
    """Build a model and load its weights.

    The file is validated before memory for the model is allocated.

    Raises:
        RunError: if the file is missing or damaged, or does not match `config`.
    """
    tensors, _ = read_tensor_file(file, parameter_specs(config))
    model = RecurrentLM(config)
    model.load_state_dict(tensors)
    return model
