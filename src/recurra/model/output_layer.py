"""The output layer and its cross-entropy loss.

`cross_entropy` is the reference, in torch. `compiled_cross_entropy` computes the same loss in one
kernel, which overwrites the logits with their gradient. A test compares the two.
"""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy

from recurra.errors import ConfigError
from recurra.kernels import library, structures
from recurra.kernels.buffers import BUFFER_POOL, NewBuffers, Workspace
from recurra.kernels.products import check_ids, gradient_product, product_kind, take_operand
from recurra.kernels.recorder import Do, at_once
from recurra.recurrence.precision import product


def logits(hidden: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the logits, (..., H) to (..., V), with the product in `dtype`."""
    return product(hidden, weight, dtype) + bias


def cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the mean cross-entropy in nats per target.

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
    """Return `cross_entropy` by the compiled kernel, for fp32 tensors on a CPU.

    Raises:
        ConfigError: a tensor is not fp32 on a CPU, or the shapes do not match.
        IndexError: a target is not below V.
        KernelError: the kernels cannot be built or loaded.
    """
    tensors = (hidden, weight, bias)
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        raise ConfigError("the compiled output layer takes fp32 tensors on a CPU")
    if weight.shape != (len(bias), hidden.shape[1]):
        shapes = [tuple(t.shape) for t in tensors]
        raise ConfigError(f"hidden, weight and bias of an output layer do not fit: {shapes}")
    apply: Any = _CrossEntropy.apply
    loss: Tensor = apply(
        OutputPasses(dtype, BUFFER_POOL, NewBuffers()), hidden, weight, bias, targets
    )
    return loss


class OutputGradients(NamedTuple):
    """The gradients of hidden (N, H), weight (V, H) and bias (V,); contiguous."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor


class OutputTrace(NamedTuple):
    """The result of the forward pass, which the backward pass reads.

    The gradients of the logits, (N, padded V), as operands of products, and of the bias, (V,).
    """

    logits: Tensor
    bias: Tensor


@dataclass(frozen=True)
class OutputPasses:
    """Forward and backward pass of the compiled output layer.

    Args:
        dtype: dtype of the products' operands, fp32 or bf16.
        workspace: the source of buffers.
        results: the source of the tensors that are returned.
        do: the function that makes each call, at once or recorded.
    """

    dtype: torch.dtype
    workspace: Workspace
    results: Workspace
    do: Do = at_once

    def forward(
        self, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
    ) -> tuple[Tensor, OutputTrace]:
        """Return the loss and the trace for the backward pass; float arguments are contiguous fp32.

        Raises:
            ConfigError: the number of targets is not the number of rows.
            IndexError: a target is not below V.
        """
        if targets.shape != hidden.shape[:1]:
            raise ConfigError(f"{len(hidden)} outputs need as many targets, not {targets.numel()}")
        targets = targets.long()
        self.do(check_ids, targets, len(weight))
        layer = self._describe(hidden, weight)
        vocabulary, kernels = len(weight), library.load()
        logits = take_operand(
            self.workspace,
            layer.kind,
            "grad logits",
            len(hidden),
            kernels.recurra_logit_numbers(vocabulary),
            like=hidden,
        )
        trace = OutputTrace(logits, self.workspace.take("grad bias", vocabulary, like=hidden))
        loss = self.results.take("loss", like=hidden)
        numbers = kernels.recurra_output_spare_numbers(layer.threads, vocabulary)
        layer.point(
            bias=bias,
            targets=targets,
            loss=loss,
            grad_logits=trace.logits,
            grad_bias=trace.bias,
            spare=self.workspace.take("spare", numbers, like=hidden),
        )
        self.do(kernels.recurra_output_forward, byref(layer))
        return loss, trace

    def backward(
        self, trace: OutputTrace, hidden: Tensor, weight: Tensor, gradients: OutputGradients
    ) -> None:
        """Write the gradients of the loss."""
        layer = self._describe(hidden, weight)
        layer.point(grad_logits=trace.logits, grad_hidden=gradients.hidden)
        self.do(library.load().recurra_output_backward, byref(layer))
        self.do(gradients.bias.copy_, trace.bias)
        left = trace.logits[:, : len(weight)]
        gradient_product(layer.kind, left, hidden, gradients.weight, self.workspace, self.do)

    def _describe(self, hidden: Tensor, weight: Tensor) -> structures.Description:
        """Return the arguments that both passes need."""
        threads = library.threads()
        vocabulary, units = weight.shape
        numbers = library.load().recurra_output_numbers(threads, units, vocabulary)
        layer = structures.OutputLayer(
            kind=product_kind(self.dtype),
            threads=threads,
            rows=len(hidden),
            units=units,
            vocabulary=vocabulary,
        )
        packed = self.workspace.take("packed head", numbers, like=hidden)
        layer.point(hidden=hidden, weight=weight, packed=packed)
        return layer


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        passes: OutputPasses,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
    ) -> Tensor:
        hidden, weight, targets = hidden.contiguous(), weight.contiguous(), targets.contiguous()
        loss, trace = passes.forward(hidden, weight, bias.contiguous(), targets)
        ctx.passes = passes
        ctx.save_for_backward(hidden, weight, bias, targets, *trace)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, *trace = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _backward_with_graph(ctx, grad_loss, hidden, weight, bias, targets)
        gradients = OutputGradients(*map(torch.empty_like, (hidden, weight, bias)))
        ctx.passes.backward(OutputTrace(*trace), hidden, weight, gradients)
        if float(grad_loss) != 1.0:
            torch._foreach_mul_(gradients, float(grad_loss))
        return (None, *gradients, None)


def _backward_with_graph(
    ctx: Any, grad_loss: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients by the plain form, with a graph, for second derivatives."""
    # With aliases, a path between two of them outside this layer does not count twice.
    given = (hidden.view_as(hidden), weight.view_as(weight), bias.view_as(bias))
    needed = ctx.needs_input_grad[1:4]
    wanted = [tensor for tensor, need in zip(given, needed, strict=True) if need]
    loss = cross_entropy(*given, targets, ctx.passes.dtype)
    found = iter(torch.autograd.grad(loss, wanted, grad_loss, create_graph=True))
    return (None, *(next(found) if need else None for need in needed), None)
