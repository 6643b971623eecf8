"""Sampling of the next token from logits, and its configuration.

Order and meaning of the settings are those of Hugging Face's `generate`: repetition penalty, then
temperature, top-k, top-p, min-p. All of it runs on the CPU in float64 from a seeded numpy
generator, so a seed gives the same text on every device, up to the rounding of the logits.

Knows no model, no text and no torch: the command line reads its options here without loading it.
Shapes: S samples, V entries of the vocabulary.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from recurra.config.checks import require
from recurra.errors import ConfigError, NonFiniteError

Ids: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Logits: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

_MAX = sys.float_info.max


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Settings of generation."""

    max_new_tokens: int = 200
    """Maximum number of tokens to generate."""

    temperature: float = 1.0
    """Divides the logits: below 1 more conservative, above 1 more random, 0 the same as greedy."""

    top_k: int | None = None
    """Sample from the k most probable tokens only (and those as probable as the k-th)."""

    top_p: float | None = None
    """Sample from the most probable tokens whose probabilities sum to this value; at least one."""

    min_p: float | None = None
    """Drop tokens less probable than this fraction of the most probable one."""

    repetition_penalty: float = 1.0
    """Above 1 makes every token of the prompt and of the text so far less likely: its logit is
    divided by this when positive, multiplied when negative."""

    stop: tuple[str, ...] = ()
    """Stop when one of these strings is generated; it is not part of the output."""

    num_samples: int = 1
    """Number of continuations of the same prompt."""

    seed: int | None = None
    """Seed of the random numbers; by default a new one every time."""

    greedy: bool = False
    """Greedy decoding: always take the most probable token; temperature, top_k, top_p, min_p and
    seed are ignored."""

    def __post_init__(self) -> None:
        # A single string, or the list that JSON has, is as clear as a tuple.
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        require(self.max_new_tokens >= 1, "max_new_tokens must be at least 1")
        require(_finite(self.temperature, 0.0), "temperature must be 0 (greedy) or positive")
        require(self.top_k is None or self.top_k >= 1, "top_k must be at least 1")
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p must be above 0 and at most 1")
        require(self.min_p is None or 0 <= self.min_p <= 1, "min_p must lie between 0 and 1")
        require(
            _finite(self.repetition_penalty, 0.0) and self.repetition_penalty > 0,
            "repetition_penalty must be positive (1 is none)",
        )
        require(all(stop), "a stop string must not be empty")
        require(1 <= self.num_samples <= 100_000, "num_samples must lie between 1 and 100,000")
        require(
            self.seed is None or 0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1"
        )


class Sampler:
    """Chooses the next token of every sample.

    Its memory is one random generator for each sample and, with a repetition penalty, one (S, V)
    mask of the tokens seen so far: it does not grow with the text.

    Attributes:
        config: the settings.
        banned: ids never chosen.
        seen: the mask, or None.
    """

    def __init__(
        self,
        config: GenerationConfig,
        vocab_size: int,
        prompt_ids: Iterable[int] = (),
        banned_ids: Sequence[int] = (),
    ) -> None:
        if len(set(banned_ids)) >= vocab_size:
            raise ConfigError("every token of the vocabulary is banned; there is nothing to write")
        self.config = config
        self.banned = list(banned_ids)
        # One generator for each sample, so that the first of four is the only one of one.
        seeds = np.random.SeedSequence(config.seed).spawn(config.num_samples)
        self._randoms = [np.random.default_rng(seed) for seed in seeds]
        self.seen: Mask | None = None
        if config.repetition_penalty != 1.0:
            self.seen = np.zeros((config.num_samples, vocab_size), dtype=np.bool_)
            self.seen[:, np.fromiter(prompt_ids, np.int64)] = True

    def choose(self, logits: Logits) -> Ids:
        """The next token of every sample, from logits (S, V), which may be overwritten: (S,) int64.

        One random number is drawn per sample and step, used or not, so that a sample does not
        depend on what the others do.

        Raises:
            NonFiniteError: a logit is NaN or plus infinity.
        """
        if not np.isfinite(logits.max(axis=-1)).all():
            raise NonFiniteError("a logit is NaN or infinite; the model's weights are damaged")
        config = self.config
        if self.seen is not None:
            logits = penalize(logits, self.seen, config.repetition_penalty)
        logits[:, self.banned] = -np.inf
        if self.is_greedy:
            chosen: Ids = logits.argmax(axis=-1)
        else:
            chosen = draw(warp(logits, config), self.uniforms(1)[0])
        if self.seen is not None:
            self.seen[np.arange(len(chosen)), chosen] = True
        return chosen

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.config.greedy or self.config.temperature == 0

    def uniforms(self, steps: int) -> Logits:
        """The random numbers of the next steps, in [0, 1): (steps, S)."""
        return np.stack([random.random(steps) for random in self._randoms], axis=1)


def warp(logits: Logits, config: GenerationConfig) -> Logits:
    """Temperature, top-k, top-p and min-p, in this order; a dropped token's logit is -inf."""
    # From the maximum down: softmax does not mind, and a tiny temperature cannot give inf - inf.
    with np.errstate(over="ignore"):
        logits = (logits - logits.max(axis=-1, keepdims=True)) / config.temperature
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p is not None:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p is not None:
        logits = keep_min_p(logits, config.min_p)
    return logits


def penalize(logits: Logits, seen: Mask, penalty: float) -> Logits:
    """The repetition penalty of CTRL (Keskar et al. 2019): a seen token's logit moves down."""
    # An extreme penalty must not make every token impossible, nor one infinitely likely.
    with np.errstate(over="ignore"):
        lowered = np.where(logits > 0, logits / penalty, logits * penalty).clip(-_MAX, _MAX)
    return np.where(seen, lowered, logits)


def keep_top_k(logits: Logits, top_k: int) -> Logits:
    """Drop every token less likely than the k-th of its row; equals of the k-th stay."""
    size = logits.shape[-1]
    if top_k >= size:
        return logits
    kth = np.partition(logits, size - top_k, axis=-1)[:, size - top_k, None]
    return np.where(logits < kth, -np.inf, logits)


def keep_top_p(logits: Logits, top_p: float) -> Logits:
    """Keep the likeliest tokens until they hold `top_p` (Holtzman et al. 2020, nucleus sampling).

    A token stays when those before it, likeliest first and equals by id, hold less than `top_p`:
    the first always does.
    """
    order = np.argsort(-logits, axis=-1, kind="stable")
    sorted_probabilities = np.take_along_axis(softmax(logits), order, axis=-1)
    before = np.cumsum(sorted_probabilities, axis=-1) - sorted_probabilities
    keep = np.empty(logits.shape, dtype=np.bool_)
    np.put_along_axis(keep, order, before < top_p, axis=-1)
    return np.where(keep, logits, -np.inf)


def keep_min_p(logits: Logits, min_p: float) -> Logits:
    """Drop tokens whose probability is below `min_p` times the largest one."""
    probabilities = softmax(logits)
    least = min_p * probabilities.max(axis=-1, keepdims=True)
    return np.where(probabilities < least, -np.inf, logits)


def softmax(logits: Logits) -> Logits:
    """Probabilities of each row; -inf becomes exactly 0."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Logits = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def draw(logits: Logits, uniforms: Logits) -> Ids:
    """One token per row by inverting the cumulative distribution at `uniforms` (S,), in [0, 1).

    A token of probability 0 is never drawn.
    """
    cumulative = np.cumsum(softmax(logits), axis=-1)
    # The largest float64 below 1 is far enough from it that no product rounds up to the total,
    # which would be beyond the last token that has any probability.
    thresholds = uniforms[:, None] * cumulative[:, -1:]
    chosen: Ids = (cumulative <= thresholds).sum(axis=-1)
    return chosen


def _finite(value: float, least: float) -> bool:
    return math.isfinite(value) and value >= least
