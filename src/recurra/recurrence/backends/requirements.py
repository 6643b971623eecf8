"""What a layer requires of a backend, from which each backend derives whether it supports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recurra.recurrence.cells import Cell, LayerParameters


@dataclass(frozen=True)
class Requirements:
    """One layer and its call, as far as backends differ in what they support.

    Attributes:
        cell: the cell.
        device: the device of the tensors; with tensors on several, one that is not the CPU.
        dtype: the dtype of the tensors; with several dtypes, one that is not fp32.
        recurrent_gradient_scale: as in `layer.run`.
        has_zoneout: whether the state has zoneout.
        is_projected: whether the layer is an LSTM with a projection.
        is_traced: whether the tensors are placeholders without memory, as in an export.
    """

    cell: Cell
    device: torch.device
    dtype: torch.dtype = torch.float32
    recurrent_gradient_scale: float = 1.0
    has_zoneout: bool = False
    is_projected: bool = False
    is_traced: bool = False


def requirements_of(
    cell: Cell,
    inputs: Tensor,
    state: Sequence[Tensor],
    parameters: LayerParameters,
    *,
    recurrent_gradient_scale: float = 1.0,
    has_zoneout: bool = False,
) -> Requirements:
    """Return what a call of `layer.run` requires."""
    tensors = [*parameters.of_torch, *(parameters.extra or ()), *state]
    present = [inputs, *(tensor for tensor in tensors if tensor is not None)]
    numbers = present if inputs.is_floating_point() else present[1:]
    return Requirements(
        cell,
        next((t.device for t in present if t.device.type != "cpu"), inputs.device),
        next((t.dtype for t in numbers if t.dtype != torch.float32), torch.float32),
        recurrent_gradient_scale,
        has_zoneout,
        parameters.weight_hr is not None,
        type(inputs) not in (Tensor, torch.nn.Parameter) or torch.compiler.is_exporting(),
    )
