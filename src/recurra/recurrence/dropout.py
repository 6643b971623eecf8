"""Dropout of layer outputs and of recurrent weights, and zoneout.

A mask is 0 for dropped units and 1 / (1 - p) for the others, which preserves the mean. A new mask
is drawn at every step (Srivastava et al. 2014), or one for all steps of a window ("locked" or
variational dropout: Gal and Ghahramani 2016). Carried states are never dropped. Recurrent weights
are dropped for a whole window (DropConnect: Wan et al. 2013; on W_hh: Merity, Keskar and Socher
2018). Zoneout keeps units of the state unchanged instead of dropping them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from recurra.kernels import library
from recurra.recurrence.cells import LayerParameters, State


class Rows(NamedTuple):
    """The rows of this process in a batch of `total` rows."""

    own: slice
    total: int


class Dropout(NamedTuple):
    """Probabilities of dropping a unit between two layers, a unit after the last, and a recurrent
    weight."""

    between: float = 0.0
    output: float = 0.0
    locked: bool = False
    weight: float = 0.0

    def mask_shape(self, steps: int, batch: int, units: int) -> tuple[int, int, int]:
        """Return the shape of a mask for outputs (T, B, H)."""
        return (1 if self.locked else steps, batch, units)


NO_DROPOUT = Dropout()


class Zoneout(NamedTuple):
    """Zoneout: at each step, each unit of a state keeps its value with a probability.

    Krueger et al. 2017. In evaluation the state is the mean of both outcomes.

    Attributes:
        probability: the probability of keeping the value.
        draws: whether to draw the units (training) or to use the mean (evaluation).
        rows: as in `layer.run_stack`.
    """

    probability: float
    draws: bool
    rows: Rows | None = None

    def mix(self, before: State, after: State) -> State:
        """Return the state after a step, each tensor (B, H)."""
        return tuple(self._mix(b, a) for b, a in zip(before, after, strict=True))

    def _mix(self, before: Tensor, after: Tensor) -> Tensor:
        if not self.draws:
            return torch.lerp(after, before, self.probability)
        rows, units = after.shape
        total = rows if self.rows is None else self.rows.total
        changes = fill_mask(after.new_empty(total, units), self.probability) > 0.0
        return torch.where(changes if self.rows is None else changes[self.rows.own], after, before)


SeedSource = Callable[[], int | Tensor]


def draw_seed() -> int:
    """Draw the seed of a mask from torch's global generator of the CPU."""
    return int(torch.randint(2**63 - 1, ()))


_seed_source: ContextVar[SeedSource] = ContextVar("seed_source", default=draw_seed)


@contextmanager
def seeds_from(source: SeedSource) -> Iterator[None]:
    """Take the seeds of masks from `source` inside the context, instead of `draw_seed`.

    Other threads are not affected.

    An engine that records and replays a step passes a source of zero-dimensional int64 tensors,
    which it overwrites with new seeds before each replay.
    """
    token = _seed_source.set(source)
    try:
        yield
    finally:
        _seed_source.reset(token)


@contextmanager
def counted_seeds() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the number of seeds that were drawn inside the context."""
    count, source = 0, _seed_source.get()

    def draw() -> int | Tensor:
        nonlocal count
        count += 1
        return source()

    with seeds_from(draw):
        yield lambda: count


def fill_mask(mask: Tensor, probability: float) -> Tensor:
    """Draw a mask in place, from one seed of torch's global generator.

    torch's `bernoulli_` calls a slow generator for each entry: for the recurrent weights of a large
    layer this takes half as long as the rest of the training step.
    """
    seed = _seed_source.get()()
    threshold, scale = round(probability * 2**16), 1.0 / (1.0 - probability)
    on_cpu = mask.device.type == "cpu" and mask.dtype == torch.float32
    if isinstance(seed, int) and on_cpu and library.is_available():
        library.load().recurra_mask(
            library.threads(), seed, threshold, scale, mask.numel(), library.pointer(mask)
        )
        return mask
    draws = _random_bits(seed, mask.numel(), mask.device).view(mask.shape)
    return torch.mul(draws >= threshold, scale, out=mask)


def _random_bits(seed: int | Tensor, count: int, device: torch.device) -> Tensor:
    """Return sixteen random bits for each entry, as `kernels/source/mask.cpp`: SplitMix64."""
    places = torch.arange(1, -(-count // 4) + 1, device=device)
    # torch has no unsigned integers of 64 bits: products wrap in the same way, but the sign bits
    # that a right shift copies must be cleared.
    word = seed + places * (0x9E3779B97F4A7C15 - 2**64)
    word = (word ^ (word >> 30) & 2**34 - 1) * (0xBF58476D1CE4E5B9 - 2**64)
    word = (word ^ (word >> 27) & 2**37 - 1) * (0x94D049BB133111EB - 2**64)
    word = word ^ (word >> 31) & 2**33 - 1
    shifts = torch.arange(0, 64, 16, device=device)
    return (word[:, None] >> shifts & 0xFFFF).flatten()[:count]


def drop(outputs: Tensor, probability: float, dropout: Dropout, rows: Rows | None) -> Tensor:
    """Return outputs (T, B, H) with some units dropped.

    With `rows`, the mask is the part of the whole batch's mask for these rows.
    """
    steps, batch, units = outputs.shape
    total = batch if rows is None else rows.total
    mask = fill_mask(outputs.new_empty(dropout.mask_shape(steps, total, units)), probability)
    return outputs * (mask if rows is None else mask[:, rows.own])


def drop_weights(layers: Sequence[LayerParameters], probability: float) -> list[LayerParameters]:
    """Return the layers with some of their recurrent weights dropped."""
    return [
        layer
        if layer.weight_hh is None
        else layer._replace(
            weight_hh=layer.weight_hh * fill_mask(torch.empty_like(layer.weight_hh), probability)
        )
        for layer in layers
    ]
