"""Requirements of a layer; each backend compares them with the features that it supports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from recurra.recurrence.cells import Cell, LayerParameters

_PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter, type(None)))


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
        is_traced: whether the layer must consist of torch operators, see `is_traced`.
        is_transformed: whether a transform of torch.func is active, see `is_transformed`.
    """

    cell: Cell
    device: torch.device
    dtype: torch.dtype = torch.float32
    recurrent_gradient_scale: float = 1.0
    has_zoneout: bool = False
    product_dtype: torch.dtype = torch.float32
    is_projected: bool = False
    is_traced: bool = False
    is_transformed: bool = False


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
        is_traced(inputs, *state, *parameters.of_torch),
        is_transformed(),
    )


def is_traced(*tensors: Tensor | None) -> bool:
    """Return whether torch must see each operation on these tensors.

    This is the case in `torch.export` and `torch.jit.trace`, and for subclasses of Tensor, which
    may have no memory.
    """
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return True
    return not _PLAIN_TYPES.issuperset(map(type, tensors))


def is_observed() -> bool:
    """Return whether a dispatch mode observes operations, as in `make_fx` or a flop counter.

    A backend that was chosen by name is not replaced there, because its results are right.
    """
    return torch._C._len_torch_dispatch_stack() > 0


def is_transformed() -> bool:
    """Return whether a transform of torch.func or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def needs_graph(*grads: Tensor) -> bool:
    """Return whether a backward pass must itself be differentiable, or its gradients are batched.

    Gradients are batched with `is_grads_batched`, which runs a backward pass inside `vmap`.
    """
    functorch = torch._C._functorch
    return (
        torch.is_grad_enabled()
        or any(map(functorch.is_batchedtensor, grads))
        or any(map(functorch.is_legacy_batchedtensor, grads))
    )
