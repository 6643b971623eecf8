"""The book's steps between two batches: gradient clipping, update, detaching the state.

Sections 3.2 (sgd) and 8.5 (clipping). Works on a torch module, on an object with `params`, or on
an iterable of tensors. Knows no loop and no text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from recurra.errors import NonFiniteError


def perplexity(mean_loss: float) -> float:
    """exp of the mean loss in nats; infinite where exp no longer fits into a float."""
    try:
        return math.exp(mean_loss)
    except OverflowError:
        return math.inf


def parameters_of(net: Any) -> list[Tensor]:
    """The trainable tensors of a module, of an object with `params`, or of an iterable of them."""
    if isinstance(net, nn.Module):
        return [p for p in net.parameters() if p.requires_grad]
    # A list, because clipping passes over them twice and net.parameters() is good for once only.
    return list(net.params if hasattr(net, "params") else net)


def clear_gradients(net: Any) -> None:
    """Set every gradient to zero, in place."""
    for param in parameters_of(net):
        if param.grad is not None:
            param.grad.zero_()


def grad_clipping(net: Any, theta: float, device: torch.device | str | None = None) -> None:
    """Scale all gradients together, in place, so that their L2 norm is at most `theta`.

    `net` is a model, or (as in v1, with a `device`, which is not needed) an iterable of tensors.
    Tensors without a gradient are left out.

    Raises:
        NonFiniteError: the norm is NaN or infinite; the gradients are left as they are.
    """
    gradients = [p.grad for p in parameters_of(net) if p.grad is not None]
    if not gradients:
        return
    # Summed on the device: one transfer, where a float of each gradient would wait for each.
    norm = torch.stack([(gradient**2).sum() for gradient in gradients]).sum().sqrt().item()
    if not math.isfinite(norm):
        raise NonFiniteError(
            f"the norm of the gradients is {norm}; the weights were not touched. A smaller"
            " learning rate or a smaller clipping threshold keeps it finite"
        )
    if norm > theta:
        for gradient in gradients:
            gradient *= theta / norm


@torch.no_grad()
def sgd(params: Iterable[Tensor], lr: float, batch_size: int) -> None:
    """One step of stochastic gradient descent; clears the gradients for the next one.

    param -= lr * gradient / batch_size.
    """
    for param in params:
        if param.grad is not None:
            param -= lr * param.grad / batch_size
            param.grad.zero_()


def detached(state: Any) -> Any:
    """The same state (a tensor, or a tuple or list of them) without the history behind it."""
    if isinstance(state, Tensor):
        return state.detach()
    return type(state)(detached(part) for part in state)
