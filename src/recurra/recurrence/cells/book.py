"""The cells of d2l chapters 8 and 9."""

from __future__ import annotations

import torch
from torch import Tensor

from recurra.recurrence.cells.cell import Cell, LayerParameters, State
from recurra.recurrence.precision import product


class TanhCell(Cell):
    """h_t = tanh(x_t W_ih' + b_ih + h_{t-1} W_hh' + b_hh): Elman 1990; d2l section 8.4."""

    name, num_gates, num_states = "rnn", 1, 1

    def step(
        self, projected: Tensor, state: State, parameters: LayerParameters, dtype: torch.dtype
    ) -> tuple[Tensor, State]:
        (h,) = state
        h = torch.tanh(projected + parameters.recurrent_product(h, dtype))
        return h, (h,)


class ReluCell(Cell):
    """h_t = max(0, x_t W_ih' + b_ih + h_{t-1} W_hh' + b_hh)."""

    name, num_gates, num_states = "rnn-relu", 1, 1

    def step(
        self, projected: Tensor, state: State, parameters: LayerParameters, dtype: torch.dtype
    ) -> tuple[Tensor, State]:
        (h,) = state
        h = torch.relu(projected + parameters.recurrent_product(h, dtype))
        return h, (h,)


class GruCell(Cell):
    """Gated recurrent unit: Cho et al. 2014 in torch's form; d2l section 9.1.

    r = s(x_r + h_r), z = s(x_z + h_z), n = tanh(x_n + r * h_n), h_t = (1 - z) * n + z * h_{t-1},
    where x_* are the three parts of x_t W_ih' + b_ih and h_* those of h_{t-1} W_hh' + b_hh. The
    book multiplies r with h_{t-1} before the product; torch and cuDNN multiply after it.
    """

    name, num_gates, num_states = "gru", 3, 1

    def step(
        self, projected: Tensor, state: State, parameters: LayerParameters, dtype: torch.dtype
    ) -> tuple[Tensor, State]:
        (h,) = state
        x_r, x_z, x_n = projected.chunk(3, dim=1)
        h_r, h_z, h_n = parameters.recurrent_product(h, dtype).chunk(3, dim=1)
        r = torch.sigmoid(x_r + h_r)
        z = torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        h = (1 - z) * n + z * h
        return h, (h,)


class LstmCell(Cell):
    """Long short-term memory: Hochreiter & Schmidhuber 1997 with forget gate; d2l section 9.2.

    i, f, o = s(...), g = tanh(...), c_t = f * c_{t-1} + i * g, h_t = o * tanh(c_t); with a
    projection (Sak et al. 2014) h_t = (o * tanh(c_t)) W_hr'.
    """

    name, num_gates, num_states = "lstm", 4, 2

    def step(
        self, projected: Tensor, state: State, parameters: LayerParameters, dtype: torch.dtype
    ) -> tuple[Tensor, State]:
        h, c = state
        i, f, g, o = (projected + parameters.recurrent_product(h, dtype)).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        if parameters.weight_hr is not None:
            h = product(h, parameters.weight_hr, dtype)
        return h, (h, c)


class FeedForwardCell(Cell):
    """y_t = tanh(x_t W_ih' + b_ih): the network without hidden state of d2l section 8.4.1."""

    name, num_gates, num_states = "none", 1, 0

    def step(
        self, projected: Tensor, state: State, parameters: LayerParameters, dtype: torch.dtype
    ) -> tuple[Tensor, State]:
        return torch.tanh(projected), ()
