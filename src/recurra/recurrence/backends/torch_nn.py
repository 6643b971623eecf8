"""One layer by torch's own kernels: oneDNN for the LSTM on a CPU, cuDNN on a GPU.

Those kernels know no token ids, so the one-hot input that the book feeds them is made here, and
only here. In bf16 they keep the state in bf16 too, where the other backends keep it in fp32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from recurra.config.cells import CELL_TRAITS
from recurra.errors import ConfigError
from recurra.recurrence.backends.reference import project
from recurra.recurrence.cells import Cell, LayerParameters, State
from recurra.recurrence.full_precision import full_precision_backward, full_precision_rnn


def run_layer(
    cell: Cell,
    inputs: Tensor,
    state: State,
    parameters: LayerParameters,
    *,
    dtype: torch.dtype,
    recurrent_gradient_scale: float,
) -> tuple[Tensor, State]:
    """One layer through time; arguments and result as in `layer.run`.

    Raises:
        ConfigError: a recurrent gradient scale other than 1, which these kernels do not offer.
    """
    if recurrent_gradient_scale != 1.0:
        raise ConfigError("the library backend cannot scale recurrent gradients; take bptt")
    if cell.num_states == 0:
        return torch.tanh(project(inputs, parameters, dtype)), ()
    state_dtype = state[0].dtype
    if not inputs.is_floating_point():
        inputs = one_hot(inputs.long(), parameters.weight_ih.shape[1])
    weights = [p.to(dtype) for p in parameters.of_torch if p is not None]
    initial = [s.unsqueeze(0).to(dtype) for s in state]
    hx = initial if cell.num_states > 1 else initial[0]
    outputs, *final = _call(
        cell.name, inputs.to(dtype), hx, weights, parameters.bias_ih is not None
    )
    return outputs.to(state_dtype), tuple(s.squeeze(0).to(state_dtype) for s in final)


def _call(name: str, inputs: Tensor, hx: Any, weights: list[Tensor], has_bias: bool) -> Any:
    kernel = CELL_TRAITS[name].torch_function
    assert kernel is not None
    function: Callable[..., Any] = getattr(torch, kernel)
    arguments = {"num_layers": 1, "dropout": 0.0, "bidirectional": False, "batch_first": False}
    with warnings.catch_warnings():
        # cuDNN would like its weights in one block; views of a state dict are not, and that is
        # a matter of a few microseconds, not something a user can act on.
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single")
        with full_precision_rnn() if inputs.is_cuda else nullcontext():
            results = function(
                inputs, hx, weights, has_biases=has_bias, train=torch.is_grad_enabled(), **arguments
            )
    if inputs.is_cuda:
        full_precision_backward(results[0])
    return results
