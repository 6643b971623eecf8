"""Requirements of a layer; each backend compares them with the features that it supports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recurra.recurrence.cells import Cell, LayerParameters


class Requirements(NamedTuple):
    """Properties of a layer and a call of it that a backend may not support.

    Attributes:
        cell: the cell.
        device: the device of the tensors; with tensors on several, one that is not the CPU.
        dtype: the dtype of the tensors; with several dtypes, one that is not fp32.
        recurrent_gradient_scale: as in `layer.run`.
        has_zoneout: whether the state has zoneout.
        product_dtype: the dtype of the operands of matrix products.
        is_projected: whether the layer is an LSTM with a projection.
        is_traced: whether the tensors are placeholders without memory, as in an export.
    """

    cell: Cell
    device: torch.device
    dtype: torch.dtype = torch.float32
    recurrent_gradient_scale: float = 1.0
    has_zoneout: bool = False
    product_dtype: torch.dtype = torch.float32
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
    product_dtype: torch.dtype = torch.float32,
) -> Requirements:
    """Return what a call of `layer.run` requires."""
    device, dtype = inputs.device, torch.float32
    for tensor in (inputs, *state, *parameters.of_torch, *(parameters.extra or ())):
        if tensor is None:
            continue
        if not tensor.is_cpu:
            device = tensor.device
        if tensor.dtype != torch.float32 and (tensor is not inputs or tensor.is_floating_point()):
            dtype = tensor.dtype
    return Requirements(
        cell,
        device,
        dtype,
        recurrent_gradient_scale,
        has_zoneout,
        product_dtype,
        parameters.weight_hr is not None,
        type(inputs) not in (Tensor, torch.nn.Parameter) or torch.compiler.is_exporting(),
    )
