"""The output layer and its loss: hidden states to the mean cross-entropy of what came next.

`cross_entropy` is the plain form, in torch. `compiled_cross_entropy` is the same by one kernel,
which writes the gradient of the logits where the logits were; a test holds one against the other.
"""

from __future__ import annotations

from ctypes import byref
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.nn.functional import linear

from recurra.kernels import library
from recurra.recurrence.native import check_ids, gradient_product, operand_dtype, product_kind
from recurra.recurrence.workspace import SHELF


def logits(hidden: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., H) to (..., V), with the product in `dtype`."""
    if dtype == hidden.dtype:
        return linear(hidden, weight, bias)
    return linear(hidden.to(dtype), weight.to(dtype)).to(hidden.dtype) + bias


def cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype
) -> Tensor:
    """Mean nats per target.

    Args:
        hidden: (N, H).
        weight: (V, H).
        bias: (V,).
        targets: (N,) int64.
        dtype: number format of the product's operands.
    """
    return torch_cross_entropy(logits(hidden, weight, bias, dtype), targets)


def compiled_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype
) -> Tensor:
    """As `cross_entropy`, by the compiled kernel; fp32 tensors on a CPU.

    Raises:
        IndexError: a target is not below V.
        KernelError: the kernels cannot be built or loaded.
    """
    apply: Any = _CrossEntropy.apply
    loss: Tensor = apply(hidden, weight, bias, targets, dtype)
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype
    ) -> Tensor:
        hidden, weight, targets = hidden.contiguous(), weight.contiguous(), targets.contiguous()
        check_ids(targets, len(weight))
        kind = product_kind(dtype)
        width = library.load().recurra_logit_numbers(len(weight))
        logits = SHELF.borrow(len(hidden), width, like=hidden)
        rounded = None
        if (operand := operand_dtype(kind)) is not None:
            rounded = SHELF.borrow(len(hidden), width, like=hidden.new_empty(0, dtype=operand))
        loss = hidden.new_empty(())
        layer, memory = _describe(kind, hidden, weight, logits, rounded)
        layer.bias = library.pointer(bias)
        layer.targets = library.pointer(targets)
        layer.loss = loss.data_ptr()
        library.load().recurra_output_forward(byref(layer))
        del memory
        ctx.kind, ctx.dtype = kind, dtype
        ctx.save_for_backward(hidden, weight, bias, targets, logits, rounded)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, logits, rounded = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _backward_with_graph(ctx, grad_loss, hidden, weight, bias, targets)
        layer, memory = _describe(ctx.kind, hidden, weight, logits, rounded)
        grad_hidden, grad_bias = torch.empty_like(hidden), torch.empty_like(bias)
        grad_weight = torch.empty_like(weight)
        layer.grad_hidden = grad_hidden.data_ptr()
        layer.grad_bias = grad_bias.data_ptr()
        library.load().recurra_output_backward(byref(layer))
        del memory
        operand = logits if rounded is None else rounded
        gradient_product(ctx.kind, operand[:, : len(weight)], hidden, grad_weight)
        gradients = (grad_hidden, grad_weight, grad_bias)
        if float(grad_loss) != 1.0:
            torch._foreach_mul_(gradients, float(grad_loss))
        return (*gradients, None, None)


def _backward_with_graph(
    ctx: Any, grad_loss: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
) -> tuple[Tensor | None, ...]:
    """The same gradients by the plain form, with a graph of their own to differentiate again."""
    # Aliases, so that a way from one of them to another outside this layer is not counted twice.
    given = (hidden.view_as(hidden), weight.view_as(weight), bias.view_as(bias))
    wanted = [t for t, need in zip(given, ctx.needs_input_grad, strict=False) if need]
    loss = cross_entropy(*given, targets, ctx.dtype)
    found = iter(torch.autograd.grad(loss, wanted, grad_loss, create_graph=True))
    return (*(next(found) if need else None for need in ctx.needs_input_grad[:3]), None, None)


def _describe(
    kind: int, hidden: Tensor, weight: Tensor, logits: Tensor, rounded: Tensor | None
) -> tuple[library.OutputLayer, Tensor]:
    """A description with what both passes need, and the memory it points to."""
    threads = library.threads()
    vocabulary, units = weight.shape
    numbers = library.load().recurra_output_numbers(threads, units, vocabulary)
    packed = SHELF.borrow(numbers, like=hidden)
    layer = library.OutputLayer(
        kind=kind,
        threads=threads,
        rows=len(hidden),
        units=units,
        vocabulary=vocabulary,
        hidden=library.pointer(hidden),
        weight=library.pointer(weight),
        logits=library.pointer(logits),
        logit_operand=library.pointer(rounded),
        packed=library.pointer(packed),
    )
    return layer, packed
