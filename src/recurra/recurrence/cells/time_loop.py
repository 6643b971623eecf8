"""Interface and helpers of the time loops of cells, which have hand-derived gradients.

A time loop contains only what depends on the previous step: one product with W_hh and a few
element-wise operations, written to existing buffers. The local derivatives of all gates at all
steps are computed before the backward loop. `backends/bptt.py` connects the loops to autograd.

Derivations follow d2l 0.17, section 8.7. Throughout, `deltas` are gradients of the loss with
respect to the pre-activations, so that each weight gradient is a single product over T*B rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from recurra.recurrence.cells.cell import State
from recurra.recurrence.precision import matrix_product, round_operand


@dataclass(frozen=True)
class RecurrentWeights:
    """Rounded weights of a layer, and the products of a time loop with them.

    Attributes:
        weight_hh: W_hh (G*H, H), rounded by `round_operand`.
        bias_hh: b_hh (G*H,) or None.
        weight_hr: W_hr (P, H), rounded, or None.
        dtype: the dtype of the operands of products.
    """

    weight_hh: Tensor
    bias_hh: Tensor | None
    weight_hr: Tensor | None
    dtype: torch.dtype

    def add_forward(self, base: Tensor, h: Tensor, out: Tensor) -> None:
        """Compute out = base + h W_hh', with h (B, H) and out (B, G*H)."""
        self._add(base, h, self.weight_hh.t(), out, 1.0)

    def add_backward(self, base: Tensor, deltas: Tensor, out: Tensor, scale: float) -> None:
        """Compute out = base + scale * deltas W_hh, with deltas (B, G*H) and out (B, H)."""
        self._add(base, deltas, self.weight_hh, out, scale)

    def project(self, m: Tensor) -> Tensor:
        """Return m W_hr', (B, H) to (B, P)."""
        assert self.weight_hr is not None
        return matrix_product(m, self.weight_hr.t(), self.dtype)

    def project_back(self, grad: Tensor) -> Tensor:
        """Return grad W_hr, (B, P) to (B, H)."""
        assert self.weight_hr is not None
        return matrix_product(grad, self.weight_hr, self.dtype)

    def _add(self, base: Tensor, rows: Tensor, weight: Tensor, out: Tensor, scale: float) -> None:
        rounded = round_operand(rows, self.dtype)
        if rounded.dtype == base.dtype:
            torch.addmm(base, rounded, weight, alpha=scale, out=out)
        else:
            torch.add(base, torch.mm(rounded, weight), alpha=scale, out=out)


@dataclass(frozen=True)
class Trace:
    """The result of the forward loop, which the backward loop reads.

    `hidden` is (T+1, B, H) and starts with the initial state; `buffers` are specific to the cell.
    """

    hidden: Tensor
    buffers: tuple[Tensor, ...]


@dataclass(frozen=True)
class LoopGradients:
    """The result of the backward loop.

    Attributes:
        input_deltas: (T, B, G*H), with respect to x_t W_ih' + b_ih.
        hidden_deltas: (T, B, G*H), with respect to h_{t-1} W_hh' + b_hh.
        initial: gradients of the initial state.
        weight_hr: (P, H) or None.
        buffer: the tensor of which the deltas are views; it must outlive them.
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


def hidden_buffer(steps: int, initial: Tensor) -> Tensor:
    """Return a new tensor (T+1, B, H) that starts with the initial state; the caller keeps it."""
    hidden = initial.new_empty(steps + 1, *initial.shape)
    hidden[0].copy_(initial)
    return hidden
