"""The network without a hidden state."""

from __future__ import annotations

import torch
from torch import Tensor

from recurra.recurrence.cells.cell import Cell, LayerParameters, State


class FeedForwardCell(Cell):
    """y_t = tanh(x_t W_ih' + b_ih): the network without hidden state of d2l 0.17 section 8.4.1."""

    def step(
        self, projected: Tensor, state: State, parameters: LayerParameters, dtype: torch.dtype
    ) -> tuple[Tensor, State]:
        return torch.tanh(projected), ()
