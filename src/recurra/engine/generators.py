"""The states of torch's random generators, as tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recurra.errors import ConfigError
from recurra.io.tensors import Tensors, TensorSpec

CPU, CUDA = "random.cpu", "random.cuda"
OPTIONAL = frozenset({CUDA})
"""Tensors that are missing if the state was saved without a GPU, and ignored without a GPU."""


def generator_states() -> Tensors:
    """Return the states of torch's global generators: CPU, and CUDA if available."""
    states = {CPU: torch.get_rng_state()}
    if torch.cuda.is_available():
        states[CUDA] = torch.cuda.get_rng_state()
    return states


def generator_specs() -> dict[str, TensorSpec]:
    """Return dtype and shape of each state."""
    shape = tuple(torch.get_rng_state().shape)
    return {CPU: TensorSpec(torch.uint8, shape), CUDA: TensorSpec(torch.uint8, (16,))}


def set_generator_states(tensors: Mapping[str, Tensor]) -> None:
    """Restore torch's global generators from what `generator_states` returned.

    Raises:
        ConfigError: a tensor is not the state of a generator.
    """
    try:
        torch.set_rng_state(tensors[CPU])
        if CUDA in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[CUDA])
    except RuntimeError as error:
        raise ConfigError(
            "random.cpu or random.cuda is not the state of a random generator"
        ) from error
