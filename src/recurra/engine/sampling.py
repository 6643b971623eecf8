"""Sampling of the next token from logits, and its configuration.

The settings have the meaning and the order of Hugging Face's `generate`: repetition penalty, then
temperature, top-k, top-p and min-p. Sampling runs on the CPU in float64 with seeded NumPy
generators. A seed therefore gives the same text on every device, up to rounding of the logits.

The module does not import torch, so that the command line can read the options without loading it.
Shapes: S samples, V tokens in the vocabulary.
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
    """Configuration of text generation.

    Raises:
        ConfigError: a setting is out of range.

    Examples:
        >>> from recurra.inference.generate import GenerationConfig
        >>> config = GenerationConfig(max_new_tokens=50, temperature=0.8, top_k=10)
        >>> config.top_k
        10
    """

    max_new_tokens: int = 200
    """Maximum number of tokens to generate."""

    temperature: float = 1.0
    """Divides the logits: below 1 is more conservative, above 1 more random, 0 is greedy."""

    top_k: int | None = None
    """Sample only from the k most probable tokens, and from ties with the k-th."""

    top_p: float | None = None
    """Sample only from the most probable tokens that together reach this probability."""

    min_p: float | None = None
    """Drop tokens whose probability is below this fraction of the largest probability."""

    repetition_penalty: float = 1.0
    """Values above 1 make the tokens of the prompt and of the generated text less likely. Positive
    logits are divided by this value, negative logits are multiplied by it."""

    stop: tuple[str, ...] = ()
    r"""Stop when one of these strings is generated; the string is not part of the output. On the
    command line, backslash escapes such as \n are replaced; \\ is a backslash."""

    num_samples: int = 1
    """Number of continuations of the same prompt."""

    seed: int | None = None
    """Random seed; by default a new one for every call."""

    greedy: bool = False
    """Greedy decoding: always take the most probable token; temperature, top_k, top_p, min_p and
    seed are ignored."""

    def __post_init__(self) -> None:
        # A single string is accepted, and so is a list, which JSON has instead of tuples.
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        require(self.max_new_tokens >= 1, "max_new_tokens must be at least 1")
        require(_finite(self.temperature, 0.0), "temperature must be 0 (greedy) or positive")
        require(self.top_k is None or self.top_k >= 1, "top_k must be at least 1")
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p must be above 0 and at most 1")
        require(self.min_p is None or 0 <= self.min_p <= 1, "min_p must be between 0 and 1")
        require(
            _finite(self.repetition_penalty, 0.0) and self.repetition_penalty > 0,
            "repetition_penalty must be positive (1 disables it)",
        )
        require(all(stop), "a stop string must not be empty")
        require(1 <= self.num_samples <= 100_000, "num_samples must be between 1 and 100,000")
        require(self.seed is None or 0 <= self.seed < 2**63, "seed must be between 0 and 2**63 - 1")


class Sampler:
    """Chooses the next token of every sample.

    A sampler holds one random generator for each sample. With a repetition penalty, it also holds
    an (S, V) mask of the tokens seen so far. Its size does not grow with the text.

    Attributes:
        config: the settings; `num_samples` is S.
        banned: ids that are never chosen.
        seen: the (S, V) mask of the tokens seen so far, or None without a repetition penalty.

    Args:
        config: the settings.
        vocab_size: V.
        prompt_ids: tokens of the prompt, to which the repetition penalty applies.
        banned_ids: ids that are never chosen.

    Raises:
        ConfigError: every token of the vocabulary is banned.
    """

    def __init__(
        self,
        config: GenerationConfig,
        vocab_size: int,
        prompt_ids: Iterable[int] = (),
        banned_ids: Sequence[int] = (),
    ) -> None:
        if len(set(banned_ids)) >= vocab_size:
            raise ConfigError("every token of the vocabulary is banned; none can be generated")
        self.config = config
        self.banned = list(banned_ids)
        # With one generator per sample, the first sample does not depend on the number of samples.
        seeds = np.random.SeedSequence(config.seed).spawn(config.num_samples)
        self._randoms = [np.random.default_rng(seed) for seed in seeds]
        self.seen: Mask | None = None
        if config.repetition_penalty != 1.0:
            self.seen = np.zeros((config.num_samples, vocab_size), dtype=np.bool_)
            self.seen[:, np.fromiter(prompt_ids, np.int64)] = True

    def choose(self, logits: Logits) -> Ids:
        """Return the next token of every sample.

        Without greedy decoding, one random number is drawn for each sample.

        Args:
            logits: (S, V) float64; may be overwritten.

        Returns:
            (S,) int64.

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
        """Whether decoding is greedy, that is, uses no random number."""
        return self.config.greedy or self.config.temperature == 0

    def uniforms(self, steps: int) -> Logits:
        """Draw the random numbers of the next steps, (steps, S) float64 in [0, 1)."""
        return np.stack([random.random(steps) for random in self._randoms], axis=1)


def warp(logits: Logits, config: GenerationConfig) -> Logits:
    """Apply temperature, top-k, top-p and min-p, in this order, to logits (S, V).

    Returns:
        New logits (S, V), relative to the maximum of each row; -inf for dropped tokens.
    """
    # Subtracting the maximum does not change softmax. Without it, a tiny temperature would give
    # infinite logits, and inf - inf is NaN.
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
    """Apply the repetition penalty of CTRL (Keskar et al. 2019) to the logits of seen tokens.

    Args:
        logits: (S, V).
        seen: (S, V); True for tokens of the prompt or of the generated text.
        penalty: divides positive logits and multiplies negative ones.
    """
    # Without the limits, an extreme penalty could make all logits of a row -inf, or one of them
    # +inf.
    with np.errstate(over="ignore"):
        lowered = np.where(logits > 0, logits / penalty, logits * penalty).clip(-_MAX, _MAX)
    return np.where(seen, lowered, logits)


def keep_top_k(logits: Logits, top_k: int) -> Logits:
    """Drop the tokens less probable than the k-th of their row; keep ties with the k-th."""
    size = logits.shape[-1]
    if top_k >= size:
        return logits
    kth = np.partition(logits, size - top_k, axis=-1)[:, size - top_k, None]
    return np.where(logits < kth, -np.inf, logits)


def keep_top_p(logits: Logits, top_p: float) -> Logits:
    """Apply nucleus sampling (Holtzman et al. 2020): keep the most probable tokens up to `top_p`.

    The tokens of a row are sorted by decreasing probability, and ties by id. A token is kept if the
    probabilities of the tokens before it sum to less than `top_p`. The first one is always kept.
    """
    order = np.argsort(-logits, axis=-1, kind="stable")
    sorted_probabilities = np.take_along_axis(softmax(logits), order, axis=-1)
    before = np.cumsum(sorted_probabilities, axis=-1) - sorted_probabilities
    keep = np.empty(logits.shape, dtype=np.bool_)
    np.put_along_axis(keep, order, before < top_p, axis=-1)
    return np.where(keep, logits, -np.inf)


def keep_min_p(logits: Logits, min_p: float) -> Logits:
    """Drop the tokens whose probability is below `min_p` times the largest of their row."""
    probabilities = softmax(logits)
    least = min_p * probabilities.max(axis=-1, keepdims=True)
    return np.where(probabilities < least, -np.inf, logits)


def softmax(logits: Logits) -> Logits:
    """Return the probabilities of each row; those of logits -inf are exactly 0."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Logits = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def draw(logits: Logits, uniforms: Logits) -> Ids:
    """Draw one token per row by inverse transform sampling.

    Tokens of probability 0 are never drawn.

    Args:
        logits: (S, V).
        uniforms: (S,) random numbers in [0, 1).

    Returns:
        (S,) int64.
    """
    cumulative = np.cumsum(softmax(logits), axis=-1)
    # The product of the total and a float64 below 1 never rounds up to the total, which would
    # select a token after the last one with a positive probability.
    thresholds = uniforms[:, None] * cumulative[:, -1:]
    chosen: Ids = (cumulative <= thresholds).sum(axis=-1)
    return chosen


def _finite(value: float, least: float) -> bool:
    return math.isfinite(value) and value >= least
