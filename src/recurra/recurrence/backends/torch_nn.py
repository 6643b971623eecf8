"""Layers by torch's own kernels: oneDNN for the LSTM on a CPU, cuDNN on a GPU.

These kernels do not accept token ids, so this is the only backend that creates one-hot inputs. In
bf16 and fp16 they also keep the state in that dtype; the other backends keep it in fp32. cuDNN
computes several layers of the same sizes in one call, in which they overlap in time.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from recurra.recurrence.backends.flat_weights import weights_of_call
from recurra.recurrence.backends.requirements import Requirements, is_transformed
from recurra.recurrence.cells import Cell, LayerParameters, State, TorchKernel
from recurra.recurrence.precision import keep_products_in_backward

OVERLAPPING_DEVICES = frozenset({"cuda"})
"""The types of the devices on which the layers of one call overlap in time."""


def unsupported(needs: Requirements) -> str | None:
    """Return why this backend cannot compute a layer, or None if it can."""
    if needs.has_zoneout:
        return "zoneout needs the reference backend"
    if needs.cell.num_states and needs.cell.torch_kernel is None:
        return f"the library backend has no {needs.cell.name} cell"
    if needs.recurrent_gradient_scale != 1.0:
        return "the library backend cannot scale recurrent gradients"
    return None


def overlaps_layers(layers: Sequence[LayerParameters]) -> bool:
    """Return whether `run_layers` can compute the layers, and is faster than `run_layer`.

    All layers must have the same number of units, and all but the lowest must read the outputs of a
    layer.
    """
    first, *others = layers
    if not others or first.weight_ih.device.type not in OVERLAPPING_DEVICES:
        return False
    if first.weight_hh is None:
        return False
    outputs = first.weight_hh.shape[1]
    expected = [None if p is None else p.shape for p in first.of_torch[1:]]
    return all(
        layer.weight_ih.shape == (len(first.weight_ih), outputs)
        and [None if p is None else p.shape for p in layer.of_torch[1:]] == expected
        for layer in others
    )


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
    stacked = tuple(part.unsqueeze(0) for part in state)
    outputs, final = run_layers(
        cell,
        inputs,
        stacked,
        [parameters],
        dtype=dtype,
        recurrent_gradient_scale=recurrent_gradient_scale,
    )
    return outputs, tuple(part.squeeze(0) for part in final)


def run_layers(
    cell: Cell,
    inputs: Tensor,
    state: State,
    layers: Sequence[LayerParameters],
    *,
    dtype: torch.dtype,
    recurrent_gradient_scale: float,
) -> tuple[Tensor, State]:
    """Run stacked layers of the same sizes through time, without dropout, in one call.

    The arguments and the result are those of `layer.run_stack`; each state tensor is (L, B, H).
    """
    assert recurrent_gradient_scale == 1.0
    assert cell.torch_kernel is not None
    state_dtype, bottom = state[0].dtype, layers[0]
    if not inputs.is_floating_point():
        inputs = _one_hot(inputs, bottom.weight_ih.shape[1], dtype)
    weights = weights_of_call(cell, layers, dtype)
    initial = [part.to(dtype) for part in state]
    hx = initial if cell.num_states > 1 else initial[0]
    arguments = {"num_layers": len(layers), "has_biases": bottom.bias_ih is not None}
    outputs, *final = _call(cell.torch_kernel, inputs.to(dtype), hx, weights, arguments)
    return outputs.to(state_dtype), tuple(part.to(state_dtype) for part in final)


def _one_hot(ids: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return one-hot rows, (T, B) to (T, B, I).

    torch's `one_hot` returns int64, which for a large vocabulary takes several times the memory. It
    is used only inside transforms of torch.func, where the in-place `scatter_` can fail.
    """
    ids = ids.long()
    if is_transformed():
        return one_hot(ids, width).to(dtype)
    rows = torch.zeros(*ids.shape, width, dtype=dtype, device=ids.device)
    return rows.scatter_(-1, ids.unsqueeze(-1), 1.0)


def _call(
    kernel: TorchKernel, inputs: Tensor, hx: Any, weights: list[Tensor], arguments: dict[str, Any]
) -> Any:
    # cuDNN's own dropout has its own random state, which no checkpoint contains.
    constant = {"dropout": 0.0, "bidirectional": False, "batch_first": False}
    with warnings.catch_warnings():
        # torch warns about weights that are not in one buffer, see `flat_weights.py`. They are not
        # only where torch does not accept one, which the user cannot change.
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single")
        results = kernel.function(
            inputs, hx, weights, train=torch.is_grad_enabled(), **arguments, **constant
        )
    if inputs.is_cuda:
        keep_products_in_backward(results[0].grad_fn)
    return results
