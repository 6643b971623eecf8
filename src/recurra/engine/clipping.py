"""Gradient clipping, and detection of NaN and infinite gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from recurra.errors import NonFiniteError


def clip_gradients(
    named_parameters: Iterable[tuple[str, Tensor]],
    *,
    max_norm: float | None = None,
    max_value: float | None = None,
) -> float:
    """Clip all gradients in place, by value first and then by norm (d2l section 8.5.5).

    Args:
        named_parameters: as `module.named_parameters()`; those without a gradient are passed over.
        max_norm: largest L2 norm of all gradients together; None leaves it.
        max_value: largest absolute value of one entry; None leaves them.

    Returns:
        The L2 norm before clipping.

    Raises:
        NonFiniteError: a gradient is NaN or infinite; nothing was changed.
    """
    named = [(name, p) for name, p in named_parameters if p.grad is not None]
    gradients = [p.grad for _, p in named if p.grad is not None]
    norm = get_total_norm(gradients)
    before = float(norm)
    if not torch.isfinite(norm):
        raise NonFiniteError(describe_non_finite(named))
    if max_value is not None:
        torch._foreach_clamp_min_(gradients, -max_value)
        torch._foreach_clamp_max_(gradients, max_value)
        norm = get_total_norm(gradients)
    if max_norm is not None:
        clip_grads_with_norm_([p for _, p in named], max_norm, norm)
    return before


def clipping_factor(norm: float, max_norm: float | None) -> float:
    """What all gradients are multiplied by, as torch does it."""
    return 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))


def describe_non_finite(named: list[tuple[str, Tensor]]) -> str:
    """Name the parameter whose gradient holds the most non-finite entries (or is the largest)."""
    counts = {}
    for name, parameter in named:
        assert parameter.grad is not None
        counts[name] = int((~torch.isfinite(parameter.grad)).sum())
    worst = max(counts, key=lambda name: counts[name])
    if counts[worst] == 0:
        norms = {name: float(p.grad.norm()) for name, p in named if p.grad is not None}
        worst = max(norms, key=lambda name: norms[name])
        return f"the gradients overflow together; the largest is that of {worst}"
    size = dict(named)[worst].numel()
    return (
        f"the gradient of {worst} is not finite in {counts[worst]:,} of {size:,} entries,"
        " the most of all"
    )
