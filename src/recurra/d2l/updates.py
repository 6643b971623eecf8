"""Gradient clipping, SGD and detaching of the state, as in the book.

See sections 3.2 (sgd) and 8.5 (clipping). A `net` is a torch module, an object with `params`, or an
iterable of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from recurra.errors import NonFiniteError


def perplexity(mean_loss: float) -> float:
    """Return exp(mean_loss) for a loss in nats, or infinity on overflow."""
    try:
        return math.exp(mean_loss)
    except OverflowError:
        return math.inf


def parameters_of(net: Any) -> list[Tensor]:
    """Return the trainable tensors of a module, an object with `params`, or an iterable."""
    if isinstance(net, nn.Module):
        return [p for p in net.parameters() if p.requires_grad]
    # The result is a list because callers iterate twice and net.parameters() is a generator.
    return list(net.params if hasattr(net, "params") else net)


def clear_gradients(net: Any) -> None:
    """Set all gradients to zero, in place."""
    for param in parameters_of(net):
        if param.grad is not None:
            param.grad.zero_()


def grad_clipping(net: Any, theta: float, device: torch.device | str | None = None) -> None:
    """Scale all gradients in place so that their global L2 norm is at most `theta`.

    Args:
        net: a model, or an iterable of tensors as in v1. Tensors without a gradient are ignored.
        theta: the maximum norm.
        device: part of the v1 signature; ignored.

    Raises:
        NonFiniteError: the norm is NaN or infinite. The gradients are left unchanged.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> d2l.grad_clipping([weight], theta=1)
        >>> weight.grad
        tensor([0.6000, 0.8000])
    """
    clip_to_norm(parameters_of(net), theta)


def clip_to_norm(parameters: Iterable[Tensor], theta: float) -> None:
    """Scale the gradients in place so that their global L2 norm is at most `theta`.

    Raises:
        NonFiniteError: the norm is NaN or infinite. The gradients are left unchanged.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    # Sum on the device, so that there is a single transfer instead of one per gradient.
    norm = torch.stack([(gradient**2).sum() for gradient in gradients]).sum().sqrt().item()
    if not math.isfinite(norm):
        raise NonFiniteError(
            f"the norm of the gradients is {norm}; the weights are unchanged. Use a smaller"
            " learning rate or a smaller clipping threshold"
        )
    if norm > theta:
        for gradient in gradients:
            gradient *= theta / norm


@torch.no_grad()
def sgd(params: Iterable[Tensor], lr: float, batch_size: int) -> None:
    """Apply one step of stochastic gradient descent, and set the gradients to zero.

    The update is param -= lr * gradient / batch_size.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> weight = torch.ones(2, requires_grad=True)
        >>> weight.grad = torch.tensor([4.0, 8.0])
        >>> d2l.sgd([weight], lr=0.5, batch_size=4)
        >>> weight.detach()
        tensor([0.5000, 0.0000])
    """
    for param in params:
        if param.grad is not None:
            param -= lr * param.grad / batch_size
            param.grad.zero_()


def detached(state: Any) -> Any:
    """Return a detached state: a tensor, or a tuple or list of tensors."""
    if isinstance(state, Tensor):
        return state.detach()
    return type(state)(detached(part) for part in state)
