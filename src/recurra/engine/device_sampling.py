"""Choose tokens on a device, with the rules and the random numbers of `sampling.py`.

No operation waits for the device. A seed gives the same text as on the CPU unless the rounding of a
logit changes the outcome of a draw. Shapes: S samples, V tokens in the vocabulary.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from recurra.engine.sampling import GenerationConfig

_MAX = sys.float_info.max


def choose(
    logits: Tensor,
    uniforms: Tensor | None,
    config: GenerationConfig,
    *,
    banned: Tensor,
    seen: Tensor | None,
) -> Tensor:
    """Return the next token of every sample, (S,) int64; see `Sampler.choose`.

    Args:
        logits: (S, V) float64.
        uniforms: (S,) random numbers in [0, 1), or None for greedy decoding.
        config: the settings.
        banned: (V,) bool, the tokens that are never chosen.
        seen: (S, V) bool, the tokens to which the repetition penalty applies; None without one.
    """
    if seen is not None:
        logits = penalize(logits, seen, config.repetition_penalty)
    logits = logits.masked_fill(banned, -torch.inf)
    if uniforms is None:
        return logits.argmax(-1)
    return draw(warp(logits, config), uniforms)


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Apply the repetition penalty; see `sampling.penalize`."""
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty).clamp(-_MAX, _MAX)
    return torch.where(seen, lowered, logits)


def warp(logits: Tensor, config: GenerationConfig) -> Tensor:
    """Apply temperature, top-k, top-p and min-p; see `sampling.warp`."""
    logits = (logits - logits.amax(-1, keepdim=True)) / config.temperature
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p is not None:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p is not None:
        probabilities = logits.softmax(-1)
        least = config.min_p * probabilities.amax(-1, keepdim=True)
        logits = logits.masked_fill(probabilities < least, -torch.inf)
    return logits


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Drop the tokens less probable than the k-th of their row; see `sampling.keep_top_k`."""
    if top_k >= logits.shape[-1]:
        return logits
    kth = torch.topk(logits, top_k).values[:, -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the most probable tokens up to a probability; see `sampling.keep_top_p`."""
    order = torch.sort(-logits, stable=True).indices
    ordered = logits.softmax(-1).gather(-1, order)
    before = ordered.cumsum(-1) - ordered
    keep = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, before < top_p)
    return logits.masked_fill(~keep, -torch.inf)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row by inverse transform sampling; see `sampling.draw`."""
    cumulative = logits.softmax(-1).cumsum(-1)
    thresholds = uniforms[:, None] * cumulative[:, -1:]
    return (cumulative <= thresholds).sum(-1)
