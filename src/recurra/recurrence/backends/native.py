"""One layer by the compiled kernels, as a node of the autograd graph.

`native_passes.py` has the forward and backward pass; this module connects them to autograd.
`reference` computes gradients of gradients.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from recurra.kernels import structures
from recurra.kernels.buffers import BUFFER_POOL, NewBuffers
from recurra.recurrence.backends.bptt import backward_with_graph
from recurra.recurrence.backends.native_passes import LayerPasses, Trace
from recurra.recurrence.backends.requirements import Requirements, needs_graph
from recurra.recurrence.cells import NUM_OF_TORCH, Cell, LayerParameters, State

PRODUCT_DTYPES = (torch.float32, torch.bfloat16)
"""The dtypes of the operands of the kernels' matrix products."""


def unsupported(needs: Requirements) -> str | None:
    """Return why this backend cannot compute a layer, or None if it can.

    The kernels must also be available, see `kernels.library`. This function does not build them.
    """
    if needs.has_zoneout:
        return "zoneout needs the reference backend"
    if needs.cell.reads_state and needs.cell.name not in structures.COMPILED_CELLS:
        return f"the compiled kernels have no {needs.cell.name} cell"
    if needs.device.type != "cpu":
        return f"the native backend computes on a CPU, not on {needs.device.type}"
    if not needs.cell.num_states:
        return None
    if needs.is_projected:
        return "the compiled kernels have no projected LSTM"
    if needs.is_traced:
        return "the native backend needs plain tensors, outside an export"
    if needs.is_transformed:
        return "transforms of torch.func and forward-mode differentiation need the reference"
    if needs.dtype != torch.float32:
        return f"the native backend computes in fp32, not in {needs.dtype}"
    if needs.product_dtype not in PRODUCT_DTYPES:
        return f"the compiled kernels have no products in {needs.product_dtype}"
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
    """Run one layer through time; arguments and result as in `layer.run`.

    Raises:
        KernelError: the kernels cannot be built or loaded.
    """
    apply: Any = _LayerThroughTime.apply
    if "torch._dynamo" in sys.modules:
        compiler: Any = torch.compiler
        apply = compiler.disable(apply)
    passes = LayerPasses(cell.name, dtype, recurrent_gradient_scale, BUFFER_POOL, NewBuffers())
    outputs, *final = apply(passes, inputs, *parameters.of_torch, *state)
    return outputs, tuple(final)


class _LayerThroughTime(torch.autograd.Function):
    """One layer through time as a single node of the autograd graph."""

    @staticmethod
    def forward(
        ctx: Any, passes: LayerPasses, inputs: Tensor, *parameters_and_state: Tensor
    ) -> tuple[Tensor, ...]:
        parameters = LayerParameters.from_torch(parameters_and_state[:NUM_OF_TORCH])
        state = parameters_and_state[NUM_OF_TORCH:]
        trace = passes.forward(inputs, state, parameters, saves=any(ctx.needs_input_grad))
        ctx.passes = passes
        ctx.save_for_backward(*trace, inputs, *parameters.of_torch, *state)
        final = [part[-1].clone() for part in trace[:2] if part is not None]
        return (trace.hidden[1:], *final)

    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor, *grad_final: Tensor) -> tuple[Any, ...]:
        # Non-reentrant checkpoints allow unpacking the saved tensors only once.
        saved, split = ctx.saved_tensors, len(Trace._fields)
        trace, (inputs, *rest) = Trace(*saved[:split]), saved[split:]
        parameters, state = (
            LayerParameters.from_torch(rest[:NUM_OF_TORCH]),
            tuple(rest[NUM_OF_TORCH:]),
        )
        if needs_graph(grad_outputs, *grad_final):
            found = backward_with_graph(
                ctx.passes.cell,
                inputs,
                state,
                parameters,
                (grad_outputs, *grad_final),
                ctx.needs_input_grad[1:],
                dtype=ctx.passes.dtype,
                recurrent_gradient_scale=ctx.passes.recurrent_scale,
            )
            return (None, *found)
        gradients = LayerParameters.from_torch(
            None if p is None else p.new_empty(p.shape) for p in parameters.of_torch
        )
        grad_inputs, initial = ctx.passes.backward(
            trace,
            inputs,
            parameters,
            grad_outputs.contiguous(),
            tuple(g.contiguous() for g in grad_final),
            gradients,
            needs_inputs=ctx.needs_input_grad[1],
        )
        return (None, grad_inputs, *gradients.of_torch, *initial)
