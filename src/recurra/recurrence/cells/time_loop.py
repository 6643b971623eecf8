"""The interface of a cell's time loops with hand-derived gradients, and what they share.

Each loop does inside the time loop only what depends on the step before: one product with W_hh and
a handful of element-wise operations, written into buffers that exist already. Whatever the
backward pass knows in advance (the local derivatives of all gates at all steps) is computed for
all steps at once. `backends/bptt.py` connects the loops to autograd.

Derivations follow d2l section 8.7. Throughout, `deltas` are gradients of the loss with respect to
the pre-activations, so that each weight gradient is a single product over T*B rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from recurra.recurrence.cells.cell import State


@dataclass(frozen=True)
class RecurrentWeights:
    """W_hh (G*H, H) in the products' dtype, b_hh (G*H,) or None, W_hr (P, H) or None."""

    weight_hh: Tensor
    bias_hh: Tensor | None
    weight_hr: Tensor | None


@dataclass(frozen=True)
class Trace:
    """What the forward loop leaves for the backward loop.

    `hidden` is (T+1, B, H) and starts with the initial state; `buffers` are the cell's own, in the
    order its two loops agree on.
    """

    hidden: Tensor
    buffers: tuple[Tensor, ...]


@dataclass(frozen=True)
class LoopGradients:
    """What the backward loop returns.

    Attributes:
        input_deltas: (T, B, G*H), with respect to x_t W_ih' + b_ih.
        hidden_deltas: (T, B, G*H), with respect to h_{t-1} W_hh' + b_hh.
        initial: gradients of the initial state.
        weight_hr: (P, H) or None.
        buffer: what the deltas are views of; hold it as long as they are used.
    """

    input_deltas: Tensor
    hidden_deltas: Tensor
    initial: State
    weight_hr: Tensor | None
    buffer: Tensor


class TimeLoop(ABC):
    """The two loops of one cell."""

    folds_bias_hh = True
    """Whether b_hh may be added to the projected inputs instead of inside the loop."""

    @abstractmethod
    def forward(
        self, projected: Tensor, state: State, weights: RecurrentWeights
    ) -> tuple[State, Trace]:
        """Run through time, overwriting `projected` (T, B, G*H); the outputs are hidden[1:]."""

    @abstractmethod
    def backward(
        self,
        trace: Trace,
        grad_outputs: Tensor,
        grad_final: State,
        weights: RecurrentWeights,
        scale: float,
    ) -> LoopGradients:
        """Run back through time; `scale` multiplies every gradient that passes between steps."""


def add_product(
    base: Tensor, rows: Tensor, weight: Tensor, out: Tensor, alpha: float = 1.0
) -> None:
    """out = base + alpha * rows @ weight, with the product in the weight's dtype."""
    if rows.dtype == weight.dtype:
        torch.addmm(base, rows, weight, alpha=alpha, out=out)
    else:
        torch.add(base, torch.mm(rows.to(weight.dtype), weight), alpha=alpha, out=out)


def hidden_buffer(steps: int, initial: Tensor) -> Tensor:
    """(T+1, B, H), the first row filled. Not borrowed: the caller keeps its rows."""
    hidden = initial.new_empty(steps + 1, *initial.shape)
    hidden[0].copy_(initial)
    return hidden
