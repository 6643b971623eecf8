"""Dynamic evaluation: the model adapts to text that it has already predicted.

Each segment is predicted and counted before the model is updated on it, so no token is seen before
it is predicted. The model adapts to the names, style and subject of the text. The result measures
the model together with the update rule, and is not comparable with that of `evaluate`.

The update rule is that of Krause, Kahembwe, Murray and Renals (2018). After each segment, with the
gradient g,

    w <- w - lr * g / (rms + mean rms * 1e-3) + min(decay * rms / mean rms, 1) * (w0 - w)

where rms is the root mean square of the gradient of each weight over the training text, and w0 the
initial weights. In addition to the paper, the gradient term is limited to `MAX_STEP_IN_LRS` times
lr. Otherwise, the weights of a token that does not occur in the sample of the training text would
change too much, because their rms is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recurra.config.checks import require, require_types
from recurra.engine.select import select_gradients
from recurra.errors import NonFiniteError, SourceError
from recurra.inference.evaluate import ReadingProgress
from recurra.inference.reading import IdArray
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.cells import State

MAX_STEP_IN_LRS = 10.0
_ROWS, _BATCHES = 16, 64
"""Batch size and number of batches of the training text from which rms is estimated."""


@dataclass(frozen=True)
class DynamicConfig:
    """Settings of dynamic evaluation.

    Examples:
        >>> from recurra.inference.dynamic import DynamicConfig
        >>> DynamicConfig(lr=1e-3)
        DynamicConfig(segment=20, lr=0.001, decay=0.002)
    """

    segment: int = 20
    """Number of tokens that are predicted between two updates."""

    lr: float = 5e-4
    """Learning rate: the change of a weight whose gradient equals its rms."""

    decay: float = 2e-3
    """Fraction of the distance to the initial weights that is undone after each segment."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.segment >= 1, "segment must be at least 1")
        require(0 <= self.lr < math.inf, "lr must be finite and not negative")
        require(0 <= self.decay < math.inf, "decay must be finite and not negative")


def evaluate_dynamically(
    model: RecurrentLM,
    ids: IdArray,
    train_ids: IdArray,
    config: DynamicConfig,
    progress: ReadingProgress | None = None,
) -> float:
    """Return the total surprisal of ids[1:] in nats under dynamic evaluation.

    The state is carried from segment to segment. The weights, gradients and mode of the model are
    restored afterwards.

    Args:
        model: the model to evaluate.
        ids: (N,) integers, predicted from the zero state.
        train_ids: integers, the training text of the model.
        config: settings of dynamic evaluation.
        progress: called after each segment with the number of predicted tokens so far and in total.

    Raises:
        SourceError: `ids` or `train_ids` has fewer than 2 elements.
        NonFiniteError: the predictions became NaN or infinite, because lr is too large or the
            weights are damaged.
    """
    if min(len(ids), len(train_ids)) < 2:
        raise SourceError(
            "dynamic evaluation needs at least 2 tokens of the text and of the training text"
        )
    with _restored_on_exit(model):
        learner = _Learner(model, config)
        learner.measure_gradients(train_ids)
        total, state = 0.0, None
        for first in range(0, len(ids) - 1, config.segment):
            last = min(first + config.segment, len(ids) - 1)
            block = torch.from_numpy(np.asarray(ids[first : last + 1]).astype(np.int64))[None]
            nats, state = learner.gradients(block.to(model.device), state)
            total += nats * (last - first)
            learner.step()
            if progress is not None:
                progress(last, len(ids) - 1)
    if not math.isfinite(total):
        raise NonFiniteError("the predictions became NaN or infinite; use a smaller lr")
    return total


class _Learner:
    def __init__(self, model: RecurrentLM, config: DynamicConfig) -> None:
        self._model, self._config = model, config
        self._parameters: list[Tensor] = list(model.parameters())
        self._initial = [p.detach().clone() for p in self._parameters]
        self._gradients = select_gradients(model)
        self._rates: list[Tensor] = []
        self._decays: list[Tensor] = []

    def gradients(self, tokens: Tensor, state: State | None) -> tuple[float, State]:
        """Set the `grad` of every parameter from (B, T + 1) tokens.

        Returns the mean loss in nats and the final state.
        """
        return self._gradients.compute(tokens[:, :-1], tokens[:, 1:], state)

    def measure_gradients(self, train_ids: IdArray) -> None:
        """Estimate the rms of each gradient, and set the learning rates and decays from it."""
        length = min(self._config.segment, len(train_ids) - 1)
        random = np.random.default_rng(0)
        squares = [torch.zeros_like(p) for p in self._parameters]
        for _ in range(_BATCHES):
            starts = random.integers(0, len(train_ids) - length, size=_ROWS)
            rows = np.stack([train_ids[start : start + length + 1] for start in starts])
            self.gradients(torch.from_numpy(rows.astype(np.int64)).to(self._model.device), None)
            torch._foreach_addcmul_(squares, self._grads(), self._grads(), value=1 / _BATCHES)
        roots = torch._foreach_sqrt(squares)
        mean = sum(float(r.sum()) for r in roots) / sum(r.numel() for r in roots)
        mean = max(mean, torch.finfo(torch.float32).tiny)
        self._rates = [self._config.lr / (root + 1e-3 * mean) for root in roots]
        self._decays = [(self._config.decay / mean * root).clamp_(max=1.0) for root in roots]

    def step(self) -> None:
        """Update the weights from the current gradients."""
        offsets = torch._foreach_sub(self._initial, self._parameters)
        steps = torch._foreach_mul(self._rates, self._grads())
        max_step = MAX_STEP_IN_LRS * self._config.lr
        torch._foreach_clamp_min_(steps, -max_step)
        torch._foreach_clamp_max_(steps, max_step)
        torch._foreach_sub_(self._parameters, steps)
        torch._foreach_addcmul_(self._parameters, self._decays, offsets)

    def _grads(self) -> list[Tensor]:
        return [p.grad for p in self._parameters if p.grad is not None]


@contextmanager
def _restored_on_exit(model: RecurrentLM) -> Iterator[None]:
    """Enter evaluation mode, and restore weights, gradients and mode on exit."""
    kept = [(p, p.detach().clone(), p.grad, p.requires_grad) for p in model.parameters()]
    training = model.training
    model.eval()
    try:
        for parameter, *_ in kept:
            parameter.requires_grad_(True)
            parameter.grad = None
        with torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for parameter, weights, grad, requires_grad in kept:
                parameter.copy_(weights)
                parameter.grad = grad
                parameter.requires_grad_(requires_grad)
        model.train(training)
