"""Cells whose gates do not read the state: all steps at once, and a linear scan of the state."""

from __future__ import annotations

import torch
from torch import Tensor

from recurra.recurrence.backends.linear_scan import linear_scan
from recurra.recurrence.backends.reference import project
from recurra.recurrence.cells import Cell, LayerParameters, LinearCell, State


def run_layer(
    cell: Cell,
    inputs: Tensor,
    state: State,
    parameters: LayerParameters,
    backend: str,
    *,
    dtype: torch.dtype,
    recurrent_gradient_scale: float,
) -> tuple[Tensor, State]:
    """Run one layer through time; arguments and result as in `layer.run`.

    `backend` is the backend of `linear_scan`. With `bptt`, a GPU uses the Triton kernel if it can.
    """
    projected = project(inputs, parameters, dtype)
    if not cell.num_states:
        # Without a state, a step is a function of its inputs alone.
        return cell.step(projected, (), parameters, dtype)
    assert isinstance(cell, LinearCell)
    a, b = cell.coefficients(projected, parameters)
    if backend == "bptt" and a.device.type != "cpu":
        # Triton's kernels have hand-derived gradients too, and are launched once or twice instead
        # of T times.
        backend = "auto"
    hidden = linear_scan(a, b, state[0], backend, recurrent_gradient_scale=recurrent_gradient_scale)
    return cell.output(projected, hidden), (hidden[-1],)
