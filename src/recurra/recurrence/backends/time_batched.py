"""Cells whose gates do not read the state: all steps at once and one linear scan."""

from __future__ import annotations

import torch
from torch import Tensor

from recurra.recurrence.backends.linear_scan import linear_scan
from recurra.recurrence.backends.reference import project
from recurra.recurrence.cells import LayerParameters, LinearCell, State


def run_layer(
    cell: LinearCell,
    inputs: Tensor,
    state: State,
    parameters: LayerParameters,
    backend: str,
    *,
    dtype: torch.dtype,
    recurrent_gradient_scale: float,
) -> tuple[Tensor, State]:
    """One layer through time; arguments and result as in `layer.run`, the backend as in
    `linear_scan`."""
    projected = project(inputs, parameters, dtype)
    a, b = cell.coefficients(projected, parameters)
    hidden = linear_scan(a, b, state[0], backend, recurrent_gradient_scale=recurrent_gradient_scale)
    return cell.output(projected, hidden), (hidden[-1],)
