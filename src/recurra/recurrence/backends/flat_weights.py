"""The weights of layers as views of one buffer, in the layout that cuDNN requires.

cuDNN reads all weights of a call from one buffer. If they are elsewhere, torch copies them to a
buffer in every call, one weight at a time. This module avoids the copies in two ways. Parameters in
the dtype of the products are made views of one buffer (`flatten_weights`, which does the same as
`torch.nn.RNN.flatten_parameters`). Other weights, for example fp32 parameters of products in bf16,
are copied and rounded by one operation per call, and so are their gradients.

This buffer is new in every call, so that a forward pass does not overwrite the weights that the
backward pass of another call, or another thread, still reads. A CUDA graph uses the buffer that was
allocated during its capture.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recurra.recurrence.backends.requirements import is_observed, is_traced, is_transformed
from recurra.recurrence.cells import Cell, LayerParameters

DEVICES = frozenset({"cuda"})
"""The types of the devices whose kernels read flat weights, that is, weights in one buffer."""

_logger = logging.getLogger(__name__)


class Layout(NamedTuple):
    """Positions of weights in a flat buffer.

    Attributes:
        numel: the number of entries of the buffer.
        offsets: the position of the first entry of each weight.
    """

    numel: int
    offsets: tuple[int, ...]

    def views(self, weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Return views of a new buffer with the values of the weights, in a dtype."""
        buffer = torch.zeros(self.numel, dtype=dtype, device=weights[0].device)
        views = [
            buffer[offset : offset + weight.numel()].view(weight.shape)
            for offset, weight in zip(self.offsets, weights, strict=True)
        ]
        torch._foreach_copy_(views, list(weights))
        return views

    def describes(self, weights: Sequence[Tensor]) -> bool:
        """Return whether the weights are views of one buffer with this layout."""
        storage = weights[0].untyped_storage()
        address, size = storage.data_ptr(), self.numel * weights[0].element_size()
        return storage.nbytes() >= size and all(
            weight.untyped_storage().data_ptr() == address
            and weight.storage_offset() == offset
            and weight.is_contiguous()
            for weight, offset in zip(weights, self.offsets, strict=True)
        )


def flatten_weights(cell: Cell, layers: Sequence[LayerParameters]) -> bool:
    """Make the weights of layers that one call computes views of one buffer.

    The parameters remain the same objects, with the same values. The function does nothing if they
    are such views already, or if their device needs no flat weights.

    Args:
        cell: the cell.
        layers: the layers of a call of torch's kernel, the lowest first.

    Returns:
        Whether the weights are views of one buffer.
    """
    weights = present_weights(layers)
    first = weights[0]
    are_alike = all(w.dtype == first.dtype and w.device == first.device for w in weights)
    is_shared = len({w.data_ptr() for w in weights}) < len(weights)
    if first.device.type not in DEVICES or not are_alike or is_shared:
        return False
    layout = _find_layout(cell, layers, first.dtype)
    if layout is None:
        return False
    if not layout.describes(weights):
        with torch.no_grad():
            for weight, view in zip(weights, layout.views(weights, first.dtype), strict=True):
                weight.data = view
    return True


def weights_of_call(
    cell: Cell, layers: Sequence[LayerParameters], dtype: torch.dtype
) -> list[Tensor]:
    """Return the weights for a call of torch's kernel in a dtype, in one buffer if cuDNN reads it.

    Args:
        cell: the cell.
        layers: the layers of the call, the lowest first.
        dtype: the dtype of the kernel's operands.
    """
    weights = present_weights(layers)
    if weights[0].device.type in DEVICES and _are_plain(weights):
        layout = _find_layout(cell, layers, dtype)
        if layout is not None:
            if dtype == weights[0].dtype and layout.describes(weights):
                return weights
            apply: Any = _FlatCopy.apply
            return list(apply(layout, dtype, *weights))
    return [weight.to(dtype) for weight in weights]


def present_weights(layers: Sequence[LayerParameters]) -> list[Tensor]:
    """Return the weights that the layers have, in the order of torch's kernels."""
    return [weight for layer in layers for weight in layer.of_torch if weight is not None]


def _are_plain(weights: Sequence[Tensor]) -> bool:
    """Return whether an autograd.Function, whose operations torch cannot trace, may copy them."""
    return not (
        torch.compiler.is_compiling() or is_observed() or is_transformed() or is_traced(*weights)
    )


class _FlatCopy(torch.autograd.Function):
    """Copies weights to a new flat buffer, and their gradients back to the weights' dtype."""

    @staticmethod
    def forward(
        ctx: Any, layout: Layout, dtype: torch.dtype, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.dtype = weights[0].dtype
        ctx.set_materialize_grads(False)
        return tuple(layout.views(weights, dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        present = [grad for grad in grads if grad is not None]
        if torch.is_grad_enabled():
            # A second derivative needs the graph of this pass.
            converted = [grad.to(ctx.dtype) for grad in present]
        elif all(grad.dtype == ctx.dtype for grad in present):
            converted = present
        else:
            converted = [torch.empty_like(grad, dtype=ctx.dtype) for grad in present]
            torch._foreach_copy_(converted, present)
        found = iter(converted)
        return (None, None, *(None if grad is None else next(found) for grad in grads))


def _find_layout(
    cell: Cell, layers: Sequence[LayerParameters], dtype: torch.dtype
) -> Layout | None:
    """Return the layout of the weights of a call, or None if cuDNN does not compute the call."""
    assert cell.torch_kernel is not None
    first = layers[0]
    shapes = tuple(tuple(weight.shape) for weight in present_weights(layers))
    projection = 0 if first.weight_hr is None else len(first.weight_hr)
    units = first.weight_ih.shape[0] // cell.num_gates
    sizes = (first.weight_ih.shape[1], units, projection, len(layers))
    return query_layout(cell.torch_kernel.mode, shapes, sizes, dtype, first.weight_ih.device)


@cache
def query_layout(
    mode: str,
    shapes: tuple[tuple[int, ...], ...],
    sizes: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Layout | None:
    """Return cuDNN's layout of the weights of a call, or None if cuDNN does not compute the call.

    torch has no function that returns the layout. The offsets are therefore read from zeros of the
    same shapes after torch has flattened them.

    Args:
        mode: the attribute `mode` of the layer of torch.nn, such as "LSTM".
        shapes: the shape of each weight.
        sizes: width of the inputs, units, size of the projection (0 without) and number of layers.
        dtype: the dtype of the weights.
        device: their device.
    """
    weights = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    if not torch._use_cudnn_rnn_flatten_weight() or not torch.cudnn_is_acceptable(weights[0]):
        return None
    width, units, projection, layers = sizes
    rnn: Any = torch.backends.cudnn.rnn
    try:
        with torch.no_grad(), torch.cuda.device(device):
            buffer = torch._cudnn_rnn_flatten_weight(
                weights,
                len(shapes) // layers,
                width,
                rnn.get_cudnn_mode(mode),
                units,
                projection,
                layers,
                False,
                False,
            )
    except RuntimeError as error:
        _logger.info("torch cannot flatten weights of %s in %s for cuDNN: %s", mode, dtype, error)
        return None
    return Layout(buffer.numel(), tuple(int(weight.storage_offset()) for weight in weights))
