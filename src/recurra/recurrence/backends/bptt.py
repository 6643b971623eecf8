"""Backpropagation through time with hand-derived gradients, in pure torch.

This module contains the parts that all cells share: the projection of all inputs at once (for token
ids, a lookup of rows), and one product over all T*B rows for each weight gradient. `reference`
computes gradients of gradients and batched gradients; forward-mode differentiation and the
transforms of torch.func need it from the start.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recurra.kernels.buffers import BUFFER_POOL
from recurra.recurrence.backends import reference
from recurra.recurrence.backends.requirements import Requirements, needs_graph
from recurra.recurrence.cells import NUM_OF_TORCH, Cell, LayerParameters, State, find_cell
from recurra.recurrence.cells.time_loop import LoopGradients, RecurrentWeights, Trace
from recurra.recurrence.precision import matrix_product, products_for_backward, round_operand


def unsupported(needs: Requirements) -> str | None:
    """Return why this backend cannot compute a layer, or None if it can."""
    if needs.has_zoneout:
        return "zoneout needs the reference backend"
    if needs.cell.reads_state and needs.cell.loop is None:
        return f"the bptt backend has no {needs.cell.name} cell"
    if needs.is_traced:
        return "the bptt backend needs plain tensors, outside an export"
    if needs.is_transformed:
        return "transforms of torch.func and forward-mode differentiation need the reference"
    return None


def run_layer(
    cell: Cell,
    inputs: Tensor,
    state: State,
    parameters: LayerParameters,
    *,
    dtype: torch.dtype,
    recurrent_gradient_scale: float,
) -> tuple[Tensor, State]:
    """Run one layer through time; arguments and result as in `layer.run`."""
    apply: Any = _LayerThroughTime.apply
    if "torch._dynamo" in sys.modules:
        # torch.compile cannot trace reused buffers. `torch.compiler.disable` imports torch._dynamo,
        # which takes a second; it is therefore called only if that is imported already.
        compiler: Any = torch.compiler
        apply = compiler.disable(apply)
    outputs, *final = apply(
        cell, dtype, recurrent_gradient_scale, inputs, *parameters.of_torch, *state
    )
    return outputs, tuple(final)


class _LayerThroughTime(torch.autograd.Function):
    """One layer through time as a single node of the autograd graph."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell,
        dtype: torch.dtype,
        scale: float,
        inputs: Tensor,
        *parameters_and_state: Tensor,
    ) -> tuple[Tensor, ...]:
        parameters = LayerParameters.from_torch(parameters_and_state[:NUM_OF_TORCH])
        assert cell.loop is not None
        projected = _project(inputs, parameters, dtype, fold_bias=cell.loop.folds_bias_hh)
        state = parameters_and_state[NUM_OF_TORCH:]
        final, trace = cell.loop.forward(projected, state, _recurrent_weights(parameters, dtype))
        ctx.cell, ctx.dtype, ctx.scale = cell, dtype, scale
        ctx.products = products_for_backward(inputs.device)
        ctx.num_buffers = len(trace.buffers)
        ctx.save_for_backward(trace.hidden, *trace.buffers, inputs, *parameters.of_torch, *state)
        return (trace.hidden[1:], *final)

    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor, *grad_final: Tensor) -> tuple[Any, ...]:
        hidden, *saved = ctx.saved_tensors
        buffers, (inputs, *saved) = saved[: ctx.num_buffers], saved[ctx.num_buffers :]
        parameters = LayerParameters.from_torch(saved[:NUM_OF_TORCH])
        if needs_graph(grad_outputs, *grad_final):
            state = tuple(saved[NUM_OF_TORCH:])
            found = backward_with_graph(
                ctx.cell.name,
                inputs,
                state,
                parameters,
                (grad_outputs, *grad_final),
                ctx.needs_input_grad[3:],
                dtype=ctx.dtype,
                recurrent_gradient_scale=ctx.scale,
            )
            return (None, None, None, *found)
        with ctx.products():
            weights = _recurrent_weights(parameters, ctx.dtype)
            trace = Trace(hidden, tuple(buffers))
            gradients = ctx.cell.loop.backward(trace, grad_outputs, grad_final, weights, ctx.scale)
            grad_inputs, *grad_parameters = _parameter_gradients(
                gradients, inputs, hidden, parameters, ctx.dtype, ctx.needs_input_grad[3]
            )
        return (None, None, None, grad_inputs, *grad_parameters, *gradients.initial)


def backward_with_graph(
    name: str,
    inputs: Tensor,
    state: State,
    parameters: LayerParameters,
    grads: tuple[Tensor, ...],
    needed: Sequence[bool],
    **options: Any,
) -> list[Tensor | None]:
    """Return the gradients of a layer by `reference`, with a graph if gradients are enabled.

    Args:
        name, inputs, state, parameters, options: the cell's name, and as in `run_layer`.
        grads: of the outputs and of each part of the final state.
        needed: whether each gradient is needed: of the inputs, each parameter, each state tensor.
    """
    first, creates = 1 + NUM_OF_TORCH, torch.is_grad_enabled()
    with torch.enable_grad():
        # With aliases, a path between two of them outside this layer does not count twice.
        given: list[Any] = [
            None if t is None else t.view_as(t) for t in (inputs, *parameters.of_torch, *state)
        ]
        outputs, final = reference.run_layer(
            find_cell(name),
            given[0],
            tuple(given[first:]),
            LayerParameters.from_torch(given[1:first]),
            **options,
        )
    wanted = [alias for alias, need in zip(given, needed, strict=True) if need]
    found = iter(
        torch.autograd.grad(
            (outputs, *final), wanted, grads, create_graph=creates, allow_unused=True
        )
    )
    return [next(found) if need else None for need in needed]


def _recurrent_weights(parameters: LayerParameters, dtype: torch.dtype) -> RecurrentWeights:
    assert parameters.weight_hh is not None
    weight_hh, weight_hr = parameters.weight_hh, parameters.weight_hr
    return RecurrentWeights(
        round_operand(weight_hh, dtype),
        parameters.bias_hh,
        None if weight_hr is None else round_operand(weight_hr, dtype),
        dtype,
    )


def _project(
    inputs: Tensor, parameters: LayerParameters, dtype: torch.dtype, *, fold_bias: bool
) -> Tensor:
    """Return x_t W_ih' and the biases that can be added in advance, (T, B, G*H)."""
    weight = parameters.weight_ih
    bias = parameters.bias_ih
    if bias is not None and fold_bias and parameters.bias_hh is not None:
        bias = bias + parameters.bias_hh
    projected = BUFFER_POOL.borrow(*inputs.shape[:2], weight.shape[0], like=weight)
    rows = projected.flatten(0, 1)
    if not inputs.is_floating_point():
        table = weight.t().contiguous() if bias is None else weight.t() + bias
        torch.index_select(table, 0, inputs.flatten(), out=rows)
        return projected
    flat = inputs.flatten(0, 1)
    if dtype == weight.dtype and bias is not None:
        torch.addmm(bias, flat, weight.t(), out=rows)
        return projected
    rows.copy_(matrix_product(flat, weight.t(), dtype))
    if bias is not None:
        rows.add_(bias)
    return projected


def _parameter_gradients(
    gradients: LoopGradients,
    inputs: Tensor,
    hidden: Tensor,
    parameters: LayerParameters,
    dtype: torch.dtype,
    needs_inputs: bool,
) -> list[Tensor | None]:
    """Return the gradients of the inputs and parameters, in the order of `LayerParameters`."""
    input_deltas = gradients.input_deltas.flatten(0, 1)
    hidden_deltas = gradients.hidden_deltas.flatten(0, 1)
    before = hidden[:-1].flatten(0, 1)
    weight = parameters.weight_ih
    grad_inputs = None
    if inputs.is_floating_point():
        flat = inputs.flatten(0, 1)
        grad_weight_ih = matrix_product(input_deltas.t(), flat, dtype)
        if needs_inputs:
            grad_inputs = matrix_product(input_deltas, weight, dtype).view_as(inputs)
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
        matrix_product(hidden_deltas.t(), before, dtype),
        grad_bias_ih,
        grad_bias_hh,
        gradients.weight_hr,
    ]


def _scatter_rows(deltas: Tensor, ids: Tensor, num_rows: int) -> Tensor:
    """Return the gradient of the lookup: the sum of the deltas for each column of W_ih.

    Returns (G*H, I), the layout of `weight_ih`.
    """
    table = deltas.new_zeros(num_rows, deltas.shape[1])
    return table.index_add_(0, ids, deltas).t()
