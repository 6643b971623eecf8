"""Implementations of one recurrent layer; all share the signature of `reference`.

Each is a module with two functions: `unsupported` returns why it cannot compute a layer, and
`run_layer` computes it. `config/backends.py` lists them.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from recurra.config.backends import BACKEND_MODULES
from recurra.errors import ConfigError
from recurra.recurrence.backends.requirements import Requirements, requirements_of
from recurra.recurrence.cells import Cell, LayerParameters, State

__all__ = ["Backend", "Requirements", "find_backend", "requirements_of"]


class Backend(Protocol):
    """The interface of a backend."""

    def unsupported(self, needs: Requirements) -> str | None:
        """Return why this backend cannot compute a layer, or None if it can."""

    def run_layer(
        self,
        cell: Cell,
        inputs: Tensor,
        state: State,
        parameters: LayerParameters,
        *,
        dtype: torch.dtype,
        recurrent_gradient_scale: float,
    ) -> tuple[Tensor, State]:
        """Run one layer through time; arguments and result as in `layer.run`."""


@cache
def find_backend(name: str) -> Backend:
    """Return the backend of this name.

    Raises:
        ConfigError: there is none; the message lists all backends.
    """
    if name not in BACKEND_MODULES:
        known = ", ".join(BACKEND_MODULES)
        raise ConfigError(f"unknown backend {name!r}; there are auto, {known}")
    backend: Any = import_module(BACKEND_MODULES[name])
    return cast("Backend", backend)
