"""The output layer and its cross-entropy loss.

`cross_entropy` is the reference, in torch. `compiled_cross_entropy` computes the same loss and its
gradients by the compiled kernels. For a small vocabulary, they overwrite the logits of all rows
with their gradients. For a large one, they compute a block of rows at a time, so that memory does
not depend on the number of rows. A test compares both with the reference.
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
from recurra.kernels.matmul_selection import matmul_kernel
from recurra.kernels.products import check_ids, gradient_product, take_operand
from recurra.kernels.recorder import Do, at_once
from recurra.recurrence.precision import product

LARGE_VOCABULARY = 3000
"""Entries from which the compiled kernels compute a block of rows at a time."""


def is_large(vocabulary: int) -> bool:
    """Return whether the compiled kernels compute a block of rows at a time."""
    return vocabulary >= LARGE_VOCABULARY


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
    passes = OutputPasses(dtype, BUFFER_POOL, NewBuffers())
    leaves = hidden, weight, bias
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in leaves):
        return passes.loss(*(t.contiguous() for t in (*leaves, targets)))
    apply: Any = _CrossEntropy.apply
    loss: Tensor = apply(passes, *leaves, targets)
    return loss


def compiled_nats(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the cross-entropy of each row in nats, (N,) float64.

    Only one tile of logits per thread is kept in memory. The arguments are contiguous, and as in
    `compiled_cross_entropy`.

    Raises:
        ConfigError: the number of targets is not the number of rows.
        IndexError: a target is not below V.
    """
    nats = torch.empty(len(hidden), dtype=torch.float64)
    passes = OutputPasses(dtype, BUFFER_POOL, NewBuffers())
    passes.in_blocks(hidden, weight, bias, targets, nats=nats)
    return nats


class OutputGradients(NamedTuple):
    """The gradients of hidden (N, H), weight (V, H) and bias (V,); contiguous."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class OutputPasses:
    """The compiled output layer. The float arguments of its methods are contiguous fp32.

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

    def loss(self, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        """Return the loss.

        Raises:
            ConfigError: the number of targets is not the number of rows.
            IndexError: a target is not below V.
        """
        if is_large(len(weight)):
            return self.in_blocks(hidden, weight, bias, targets)
        loss, _ = self._forward(hidden, weight, bias, targets, torch.empty_like(bias))
        return loss

    def differentiate(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        gradients: OutputGradients,
    ) -> Tensor:
        """Write the gradients of the loss, and return the loss; raises the same as `loss`."""
        if is_large(len(weight)):
            return self.in_blocks(hidden, weight, bias, targets, gradients)
        loss, grad_logits = self._forward(hidden, weight, bias, targets, gradients.bias)
        layer = self._describe(hidden, weight)
        layer.point(grad_logits=grad_logits, grad_hidden=gradients.hidden)
        self._point_to_packed(layer, hidden, weight)
        self.do(library.load().recurra_output_backward, byref(layer))
        left = grad_logits[:, : len(weight)]
        gradient_product(layer.kind, left, hidden, gradients.weight, self.workspace, self.do)
        return loss

    def in_blocks(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        gradients: OutputGradients | None = None,
        nats: Tensor | None = None,
    ) -> Tensor:
        """Do the same as `differentiate` or `loss`, for a block of rows at a time.

        Args:
            hidden, weight, bias, targets: as in `cross_entropy`.
            gradients: receive the gradients; without them, only the loss is computed.
            nats: receives the loss of each row, (N,) float64.
        """
        layer, loss = self._describe_forward(hidden, weight, bias, targets)
        sizes = layer.threads, len(hidden), *reversed(weight.shape)
        kernels = library.load()
        numbers = kernels.recurra_block_spare_numbers(*sizes, gradients is not None)
        layer.point(nats=nats, spare=self.workspace.take("spare", numbers, like=hidden))
        numbers = kernels.recurra_block_numbers(*sizes)
        layer.point(packed=self.workspace.take("packed head", numbers, like=hidden))
        if gradients is not None:
            layer.point(
                grad_hidden=gradients.hidden,
                grad_weight=gradients.weight,
                grad_bias=gradients.bias,
            )
        self.do(kernels.recurra_output_in_blocks, byref(layer))
        return loss

    def _forward(
        self, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, grad_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write the gradient of the bias.

        Returns:
            The loss and the gradients of the logits, (N, padded V), as operands of products.
        """
        layer, loss = self._describe_forward(hidden, weight, bias, targets)
        vocabulary, kernels = len(weight), library.load()
        width = kernels.recurra_logit_numbers(vocabulary)
        grad_logits = take_operand(
            self.workspace, layer.kind, "grad logits", len(hidden), width, like=hidden
        )
        numbers = kernels.recurra_output_spare_numbers(layer.threads, vocabulary)
        spare = self.workspace.take("spare", numbers, like=hidden)
        layer.point(grad_logits=grad_logits, grad_bias=grad_bias, spare=spare)
        self._point_to_packed(layer, hidden, weight)
        self.do(kernels.recurra_output_forward, byref(layer))
        return loss, grad_logits

    def _point_to_packed(
        self, layer: structures.Description, hidden: Tensor, weight: Tensor
    ) -> None:
        vocabulary, units = weight.shape
        numbers = library.load().recurra_output_numbers(layer.threads, units, vocabulary)
        layer.point(packed=self.workspace.take("packed head", numbers, like=hidden))

    def _describe_forward(
        self, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
    ) -> tuple[structures.Description, Tensor]:
        """Check the targets; return the arguments that a pass over them needs, and the loss."""
        if targets.shape != hidden.shape[:1]:
            raise ConfigError(f"{len(hidden)} outputs need as many targets, not {targets.numel()}")
        targets = targets.long()
        self.do(check_ids, targets, len(weight))
        layer, loss = self._describe(hidden, weight), self.results.take("loss", like=hidden)
        layer.point(bias=bias, targets=targets, loss=loss)
        return layer, loss

    def _describe(self, hidden: Tensor, weight: Tensor) -> structures.Description:
        """Return the arguments that all passes need."""
        vocabulary, units = weight.shape
        layer = structures.OutputLayer(
            kind=matmul_kernel(self.dtype),
            threads=library.threads(),
            rows=len(hidden),
            units=units,
            vocabulary=vocabulary,
        )
        layer.point(hidden=hidden, weight=weight)
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
        hidden, weight, bias, targets = (t.contiguous() for t in (hidden, weight, bias, targets))
        ctx.passes = passes
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.gradients = OutputGradients(*map(torch.empty_like, (hidden, weight, bias)))
        return passes.differentiate(hidden, weight, bias, targets, ctx.gradients)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _backward_with_graph(ctx, grad_loss, hidden, weight, bias, targets)
        # The first backward pass returns the stored gradients to autograd, which may modify them. A
        # second pass computes them again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = OutputGradients(*map(torch.empty_like, (hidden, weight, bias)))
            ctx.passes.differentiate(hidden, weight, bias, targets, gradients)
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
