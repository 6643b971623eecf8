"""Gradient clipping, and detection of NaN and infinite gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from recurra.errors import NonFiniteError


def clip_gradients(
    named_parameters: Iterable[tuple[str, Tensor]],
    *,
    max_norm: float | None = None,
    max_value: float | None = None,
) -> float:
    """Clip all gradients in place, by value first and then by norm (d2l 0.17 section 8.5.5).

    Args:
        named_parameters: as returned by `module.named_parameters()`; parameters without a gradient
            are skipped.
        max_norm: maximum L2 norm of all gradients together; None disables clipping by norm.
        max_value: maximum absolute value of an entry; None disables clipping by value.

    Returns:
        The L2 norm of all gradients together before clipping.

    Raises:
        NonFiniteError: a gradient is NaN or infinite; nothing was changed.
    """
    named = [(name, p) for name, p in named_parameters if p.grad is not None]
    gradients = [p.grad for _, p in named if p.grad is not None]
    before = get_total_norm(gradients)
    if not torch.isfinite(before):
        raise NonFiniteError(describe_non_finite(named))
    clip_finite_gradients(gradients, before, max_norm=max_norm, max_value=max_value)
    return float(before)


def clip_finite_gradients(
    gradients: list[Tensor], norm: Tensor, *, max_norm: float | None, max_value: float | None
) -> None:
    """Clip gradients in place, without a transfer to the host. Do nothing if `norm` is not finite.

    Args:
        gradients: the gradients.
        norm: their L2 norm before clipping, a zero-dimensional tensor.
        max_norm, max_value: as in `clip_gradients`.
    """
    is_finite = torch.isfinite(norm)
    if max_value is not None:
        limit = torch.where(is_finite, max_value, torch.inf)
        for gradient in gradients:
            gradient.clamp_(-limit, limit)
        norm = get_total_norm(gradients)
    if max_norm is not None:
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(gradients, torch.where(is_finite, factor, torch.ones_like(factor)))


def gradient_norms(gradients: list[Tensor]) -> Tensor:
    """Return the L2 norm of each gradient, (number of gradients,), without a transfer to the host.

    Args:
        gradients: the gradients, on one device.
    """
    return torch.stack(torch._foreach_norm(gradients, 2.0))


def clipping_factor(norm: float, max_norm: float | None) -> float:
    """Return the factor that clips gradients of this L2 norm, as in torch's `clip_grad_norm_`."""
    return 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))


def describe_norms(norms: Mapping[str, float]) -> str:
    """Return an error message about gradients whose common norm is not finite.

    Args:
        norms: the L2 norm of each gradient, by the name of the parameter.
    """
    failed = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if failed:
        return f"the norm of the gradient of {', '.join(failed)} is not finite"
    return _describe_overflow(norms)


def _describe_overflow(norms: Mapping[str, float]) -> str:
    worst = max(norms, key=lambda name: norms[name])
    return f"the norm of all gradients overflows; the largest gradient is that of {worst}"


def describe_non_finite(named: Sequence[tuple[str, Tensor]]) -> str:
    """Return an error message that names the gradient with the most entries that are not finite.

    If every entry is finite and only the norm overflows, the message names the largest gradient.
    """
    counts = {}
    for name, parameter in named:
        assert parameter.grad is not None
        counts[name] = int((~torch.isfinite(parameter.grad)).sum())
    worst = max(counts, key=lambda name: counts[name])
    if counts[worst] == 0:
        norms = {name: float(p.grad.norm()) for name, p in named if p.grad is not None}
        return _describe_overflow(norms)
    size = dict(named)[worst].numel()
    return (
        f"the gradient of {worst} is not finite in {counts[worst]:,} of {size:,} entries,"
        " the highest count of all parameters"
    )
