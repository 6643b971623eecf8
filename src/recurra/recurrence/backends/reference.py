"""The plain time loop over a cell's step; autograd computes the gradients.

Every other backend is compared with this one in outputs, final state and every gradient. It is
short rather than fast.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding

from recurra.recurrence.backends.requirements import Requirements
from recurra.recurrence.cells import Cell, LayerParameters, State
from recurra.recurrence.dropout import Zoneout
from recurra.recurrence.precision import product


def unsupported(needs: Requirements) -> str | None:
    """Return why this backend cannot compute a layer, or None if it can."""
    if needs.has_zoneout and not needs.cell.reads_state:
        return f"zoneout needs a cell whose gates read the state; those of {needs.cell.name} do not"
    return None


def run_layer(
    cell: Cell,
    inputs: Tensor,
    state: State,
    parameters: LayerParameters,
    *,
    dtype: torch.dtype,
    recurrent_gradient_scale: float,
    zoneout: Zoneout | None = None,
) -> tuple[Tensor, State]:
    """Run one layer through time; arguments and result as in `layer.run`."""
    outputs = []
    reads = project(inputs, parameters, dtype) if not cell.traits.changes_inputs else inputs
    for projected in reads:
        if recurrent_gradient_scale != 1.0:
            state = tuple(scale_gradient(s, recurrent_gradient_scale) for s in state)
        before = state
        output, state = cell.step(projected, before, parameters, dtype)
        if zoneout is not None:
            state = zoneout.mix(before, state)
            output = state[0]
        outputs.append(output)
    return torch.stack(outputs), state


def project(inputs: Tensor, parameters: LayerParameters, dtype: torch.dtype) -> Tensor:
    """Return x_t W_ih' + b_ih of all steps, (T, B, G*H); ids select rows of W_ih'."""
    weight = parameters.weight_ih
    if inputs.is_floating_point():
        projected = product(inputs, weight, dtype)
    else:
        projected = embedding(inputs, weight.t())
    return projected if parameters.bias_ih is None else projected + parameters.bias_ih


def scale_gradient(tensor: Tensor, scale: float) -> Tensor:
    """Return the tensor unchanged, with its gradient multiplied by `scale`."""
    return tensor * scale + (tensor * (1.0 - scale)).detach()
