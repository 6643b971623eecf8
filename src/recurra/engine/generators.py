"""The states of torch's random generators, as tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recurra.errors import ConfigError
from recurra.io.tensors import Tensors, TensorSpec

CPU, CUDA = "random.cpu", "random.cuda"
OPTIONAL = frozenset({CUDA})
"""Absent from a state that was saved without a GPU, and ignored where there is none."""


def generator_states() -> Tensors:
    """Return the states of the global generators: the CPU's, and that of a CUDA GPU if any."""
    states = {CPU: torch.get_rng_state()}
    if torch.cuda.is_available():
        states[CUDA] = torch.cuda.get_rng_state()
    return states


def generator_specs() -> dict[str, TensorSpec]:
    """Return dtype and shape of each state."""
    shape = tuple(torch.get_rng_state().shape)
    return {CPU: TensorSpec(torch.uint8, shape), CUDA: TensorSpec(torch.uint8, (16,))}


def set_generator_states(tensors: Mapping[str, Tensor]) -> None:
    """Restore the global generators.

    Raises:
        ConfigError: a tensor is not the state of a generator.
    """
    try:
        torch.set_rng_state(tensors[CPU])
        if CUDA in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[CUDA])
    except RuntimeError as error:
        raise ConfigError("random.* is not the state of a random generator") from error
