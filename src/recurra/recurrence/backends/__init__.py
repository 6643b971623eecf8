"""Implementations of one recurrent layer; all share the signature of `reference`.

Each is a module with two functions: `unsupported` returns why it cannot compute a layer, and
`run_layer` computes it. A `StackBackend` also computes several layers in one call.
`config/backends.py` lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from recurra.config.backends import BACKEND_MODULES
from recurra.errors import ConfigError
from recurra.kernels import library
from recurra.recurrence.backends.requirements import (
    Requirements,
    is_observed,
    is_traced,
    is_transformed,
    requirements_of,
)
from recurra.recurrence.cells import Cell, LayerParameters, State, find_cell
from recurra.recurrence.precision import FP32, Precision

__all__ = [
    "Backend",
    "Requirements",
    "StackBackend",
    "find_backend",
    "is_observed",
    "is_traced",
    "is_transformed",
    "overlapping_backends",
    "require_backend",
    "require_name",
    "require_supported",
    "requirements_of",
    "supporting_backends",
]


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


class StackBackend(Backend, Protocol):
    """A backend that can also compute several layers in one call, which is optional."""

    def overlaps_layers(self, layers: Sequence[LayerParameters]) -> bool:
        """Return whether `run_layers` can compute the layers, and is faster than `run_layer`."""

    def run_layers(
        self,
        cell: Cell,
        inputs: Tensor,
        state: State,
        layers: Sequence[LayerParameters],
        *,
        dtype: torch.dtype,
        recurrent_gradient_scale: float,
    ) -> tuple[Tensor, State]:
        """Run stacked layers without dropout; arguments and result as in `layer.run_stack`."""


@cache
def find_backend(name: str) -> Backend:
    """Return the backend of this name.

    Raises:
        ConfigError: the name is unknown; the message lists all backends.
    """
    if name not in BACKEND_MODULES:
        known = ", ".join(BACKEND_MODULES)
        raise ConfigError(f"unknown backend {name!r}; choose one of auto, {known}")
    backend: Any = import_module(BACKEND_MODULES[name])
    return cast("Backend", backend)


def require_name(name: str) -> None:
    """Check that a backend exists, or is `auto`.

    Raises:
        ConfigError: it does not exist.
    """
    if name != "auto":
        find_backend(name)


def require_supported(name: str, needs: Requirements) -> None:
    """Check that a backend exists and supports a layer; `auto` is always accepted.

    Raises:
        ConfigError: it does not; the message has the reason and the backends that do.
    """
    if name == "auto":
        return
    reason = find_backend(name).unsupported(needs)
    if reason is not None:
        able = supporting_backends(needs)
        raise ConfigError(f"{reason}; use auto, {', '.join(able)}" if able else reason)


def overlapping_backends(layers: Sequence[LayerParameters]) -> dict[str, StackBackend]:
    """Return the backends that compute these stacked layers faster in one call, by name."""
    found = ((name, cast("StackBackend", find_backend(name))) for name in BACKEND_MODULES)
    return {n: b for n, b in found if hasattr(b, "run_layers") and b.overlaps_layers(layers)}


def supporting_backends(needs: Requirements) -> list[str]:
    """Return the names of the backends that support a layer."""
    return [name for name in BACKEND_MODULES if find_backend(name).unsupported(needs) is None]


def require_backend(
    name: str, cell: str, device: torch.device, precision: Precision = FP32
) -> None:
    """Check that a backend can compute a cell on a device in a precision; `native` is loaded.

    Raises:
        ConfigError, KernelError: it cannot.
    """
    dtype = precision.product_dtype(torch.float32)
    require_supported(name, Requirements(find_cell(cell), device, product_dtype=dtype))
    if name == "native":
        library.load()
