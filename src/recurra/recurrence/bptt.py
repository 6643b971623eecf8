"""Backpropagation through time written by hand: readable, pure torch, fast.

Around the loops of `time_loops.py` stands what a layer shares whatever its cell: the projection of
all inputs at once (a lookup of rows where the inputs are token ids), and one product for each
weight gradient over all T*B rows. Not twice differentiable; `reference` is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recurra.recurrence.cells import Cell, LayerParameters, State
from recurra.recurrence.reference import project
from recurra.recurrence.time_loops import LOOPS, LoopGradients, RecurrentWeights, Trace
from recurra.recurrence.workspace import SHELF, Lease


def run_layer(
    cell: Cell,
    inputs: Tensor,
    state: State,
    parameters: LayerParameters,
    *,
    dtype: torch.dtype,
    recurrent_gradient_scale: float,
) -> tuple[Tensor, State]:
    """One layer through time; arguments and result as in `scan.run`."""
    if cell.num_states == 0:
        # Without a hidden state there is no time to go back through: autograd has it all.
        return torch.tanh(project(inputs, parameters, dtype)), ()
    outputs, *final = _LayerThroughTime.apply(  # type: ignore[no-untyped-call]
        cell.name, dtype, recurrent_gradient_scale, inputs, *parameters, *state
    )
    return outputs, tuple(final)


class _LayerThroughTime(torch.autograd.Function):
    """One layer through time as a single node of the autograd graph."""

    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        dtype: torch.dtype,
        scale: float,
        inputs: Tensor,
        *parameters_and_state: Tensor,
    ) -> tuple[Tensor, ...]:
        split = len(LayerParameters._fields)
        parameters = LayerParameters(*parameters_and_state[:split])
        loop = LOOPS[name]
        projected = _project(inputs, parameters, dtype, fold_bias=loop.folds_bias_hh)
        state = parameters_and_state[split:]
        final, trace = loop.forward(projected, state, _recurrent_weights(parameters, dtype))
        ctx.loop, ctx.dtype, ctx.scale, ctx.leases = loop, dtype, scale, trace.leases
        ctx.save_for_backward(inputs, trace.hidden, *parameters)
        return (trace.hidden[1:], *final)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor, *grad_final: Tensor) -> tuple[Any, ...]:
        inputs, hidden, *saved = ctx.saved_tensors
        parameters = LayerParameters(*saved)
        weights = _recurrent_weights(parameters, ctx.dtype)
        trace = Trace(hidden, ctx.leases)
        gradients = ctx.loop.backward(trace, grad_outputs, grad_final, weights, ctx.scale)
        grad_inputs, *grad_parameters = _parameter_gradients(
            gradients, inputs, hidden, parameters, ctx.dtype, ctx.needs_input_grad[3]
        )
        return (None, None, None, grad_inputs, *grad_parameters, *gradients.initial)


def _recurrent_weights(parameters: LayerParameters, dtype: torch.dtype) -> RecurrentWeights:
    assert parameters.weight_hh is not None
    weight_hr = None if parameters.weight_hr is None else parameters.weight_hr.to(dtype)
    return RecurrentWeights(parameters.weight_hh.to(dtype), parameters.bias_hh, weight_hr)


def _project(
    inputs: Tensor, parameters: LayerParameters, dtype: torch.dtype, *, fold_bias: bool
) -> Lease:
    """x_t W_ih' and the biases that may be added beforehand, (T, B, G*H), in a leased buffer."""
    weight = parameters.weight_ih
    bias = parameters.bias_ih
    if bias is not None and fold_bias and parameters.bias_hh is not None:
        bias = bias + parameters.bias_hh
    lease = SHELF.lease(*inputs.shape[:2], weight.shape[0], like=weight)
    rows = lease.tensor.flatten(0, 1)
    if not inputs.is_floating_point():
        table = weight.t().contiguous() if bias is None else weight.t() + bias
        torch.index_select(table, 0, inputs.flatten(), out=rows)
        return lease
    flat = inputs.flatten(0, 1)
    if dtype == weight.dtype and bias is not None:
        torch.addmm(bias, flat, weight.t(), out=rows)
        return lease
    rows.copy_(torch.mm(flat.to(dtype), weight.t().to(dtype)))
    if bias is not None:
        rows.add_(bias)
    return lease


def _parameter_gradients(
    gradients: LoopGradients,
    inputs: Tensor,
    hidden: Tensor,
    parameters: LayerParameters,
    dtype: torch.dtype,
    needs_inputs: bool,
) -> list[Tensor | None]:
    """Gradients of the inputs and of each parameter, in the order of `LayerParameters`."""
    input_deltas = gradients.input_deltas.flatten(0, 1)
    hidden_deltas = gradients.hidden_deltas.flatten(0, 1)
    before = hidden[:-1].flatten(0, 1)
    weight = parameters.weight_ih
    grad_inputs = None
    if inputs.is_floating_point():
        flat = inputs.flatten(0, 1)
        grad_weight_ih = _product(input_deltas.t(), flat, dtype)
        if needs_inputs:
            grad_inputs = _product(input_deltas, weight, dtype).view_as(inputs)
    else:
        grad_weight_ih = _scatter_rows(input_deltas, inputs.flatten(), weight.shape[1])
    grad_bias_ih = grad_bias_hh = None
    if parameters.bias_ih is not None:
        grad_bias_ih = input_deltas.sum(0)
        shared = gradients.input_deltas is gradients.hidden_deltas
        grad_bias_hh = grad_bias_ih.clone() if shared else hidden_deltas.sum(0)
    return [
        grad_inputs,
        grad_weight_ih,
        _product(hidden_deltas.t(), before, dtype),
        grad_bias_ih,
        grad_bias_hh,
        gradients.weight_hr,
    ]


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.mm(left.to(dtype), right.to(dtype)).to(left.dtype)


def _scatter_rows(deltas: Tensor, ids: Tensor, num_rows: int) -> Tensor:
    """The lookup's gradient: each delta added to the column of W_ih that its token took.

    Returns (G*H, I), the layout of `weight_ih`.
    """
    table = deltas.new_zeros(num_rows, deltas.shape[1])
    return table.index_add_(0, ids, deltas).t()
