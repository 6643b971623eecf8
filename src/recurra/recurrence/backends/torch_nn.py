"""One layer by torch's own kernels: oneDNN for the LSTM on a CPU, cuDNN on a GPU.

These kernels do not accept token ids, so this is the only backend that creates one-hot inputs. In
bf16 they also keep the state in bf16; the other backends keep it in fp32.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from recurra.recurrence.backends.requirements import Requirements
from recurra.recurrence.cells import Cell, LayerParameters, State, TorchKernel
from recurra.recurrence.precision import full_precision_backward, full_precision_rnn


def unsupported(needs: Requirements) -> str | None:
    """Return why this backend cannot compute a layer, or None if it can."""
    if needs.has_zoneout:
        return "zoneout needs the reference backend"
    if needs.cell.num_states and needs.cell.torch_kernel is None:
        return f"the library backend has no {needs.cell.name} cell"
    if needs.recurrent_gradient_scale != 1.0:
        return "the library backend cannot scale recurrent gradients"
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

    torch's kernels do not scale recurrent gradients: the scale must be 1.
    """
    assert recurrent_gradient_scale == 1.0
    assert cell.torch_kernel is not None
    state_dtype = state[0].dtype
    if not inputs.is_floating_point():
        inputs = one_hot(inputs.long(), parameters.weight_ih.shape[1])
    weights = [p.to(dtype) for p in parameters.of_torch if p is not None]
    initial = [s.unsqueeze(0).to(dtype) for s in state]
    hx = initial if cell.num_states > 1 else initial[0]
    outputs, *final = _call(
        cell.torch_kernel, inputs.to(dtype), hx, weights, parameters.bias_ih is not None
    )
    return outputs.to(state_dtype), tuple(s.squeeze(0).to(state_dtype) for s in final)


def _call(
    kernel: TorchKernel, inputs: Tensor, hx: Any, weights: list[Tensor], has_bias: bool
) -> Any:
    arguments = {"num_layers": 1, "dropout": 0.0, "bidirectional": False, "batch_first": False}
    with warnings.catch_warnings():
        # cuDNN warns about weights that are not in one block of memory. Copying them costs a few
        # microseconds, and the user cannot avoid it.
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single")
        with full_precision_rnn() if inputs.is_cuda else nullcontext():
            results = kernel.function(
                inputs, hx, weights, has_biases=has_bias, train=torch.is_grad_enabled(), **arguments
            )
    if inputs.is_cuda:
        full_precision_backward(results[0])
    return results
