"""Dropout of layers' outputs, on their way to the next layer and to the output layer.

A mask holds 0 for what is dropped and 1 / (1 - p) for the rest, so that the mean stays. It is drawn
anew at every step (Srivastava et al. 2014), or once for all steps of a window ("locked" or
variational dropout: Gal and Ghahramani 2016). States that are carried are never dropped.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """The rows that are here, of a batch of `total`."""

    own: slice
    total: int


class Dropout(NamedTuple):
    """Probabilities of dropping a unit: between two layers, and after the last."""

    between: float = 0.0
    output: float = 0.0
    locked: bool = False

    def mask_shape(self, steps: int, batch: int, units: int) -> tuple[int, int, int]:
        """Of a mask for outputs (T, B, H)."""
        return (1 if self.locked else steps, batch, units)


NO_DROPOUT = Dropout()


def fill_mask(mask: Tensor, probability: float) -> Tensor:
    """Draw it, in place, from torch's global generator."""
    return mask.bernoulli_(1.0 - probability).div_(1.0 - probability)


def drop(outputs: Tensor, probability: float, dropout: Dropout, rows: Rows | None) -> Tensor:
    """Outputs (T, B, H) with some dropped; with `rows`, by the mask that the whole batch would have
    drawn."""
    steps, batch, units = outputs.shape
    total = batch if rows is None else rows.total
    mask = fill_mask(outputs.new_empty(dropout.mask_shape(steps, total, units)), probability)
    return outputs * (mask if rows is None else mask[:, rows.own])
