"""Implementations of one recurrent layer; all share the signature of `reference`.

`BACKENDS` is the only list of them. Each is a module with two functions: `unsupported` returns why
it cannot compute a layer, and `run_layer` computes it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from recurra.recurrence.backends import bptt, native, reference, torch_nn
from recurra.recurrence.backends.requirements import Requirements, requirements_of
from recurra.recurrence.cells import Cell, LayerParameters, State

__all__ = ["BACKENDS", "Backend", "Requirements", "requirements_of"]


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


BACKENDS: dict[str, Backend] = {
    "reference": reference,
    "bptt": bptt,
    "library": torch_nn,
    "native": native,
}
"""Every backend by its name in `ModelConfig.backend`."""
