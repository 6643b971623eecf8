"""Variants of the LSTM, computed by the reference equations only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from recurra.config.cells import cell_traits
from recurra.recurrence.cells.cell import Cell, LayerParameters, State
from recurra.recurrence.cells.lstm import LstmCell
from recurra.recurrence.precision import product


class LayerNormLstmCell(Cell):
    """LSTM with layer normalization (Ba, Kiros and Hinton 2016).

    The pre-activations of i, f, g, o are LN(x_t W_ih' + b_ih) + LN(h_{t-1} W_hh') + b_hh, and
    h_t = o * tanh(LN(c_t)). Each LN normalizes over all entries of its argument and has its own
    gain. Only that of c_t has its own bias.
    """

    def extra_shapes(self, units: int, inputs: int) -> dict[str, tuple[int, ...]]:
        gates = self.num_gates * units
        return {
            "gain_ih": (gates,),
            "gain_hh": (gates,),
            "gain_cell": (units,),
            "bias_cell": (units,),
        }

    def initialize_extra(self, name: str, parameter: Tensor) -> None:
        parameter.fill_(0.0 if name == "bias_cell" else 1.0)

    def step(
        self, projected: Tensor, state: State, parameters: LayerParameters, dtype: torch.dtype
    ) -> tuple[Tensor, State]:
        assert parameters.extra is not None
        assert parameters.weight_hh is not None
        gain_ih, gain_hh, gain_cell, bias_cell = parameters.extra
        h, c = state
        recurrent = product(h, parameters.weight_hh, dtype)
        gates = layer_norm(projected, gain_ih.shape, gain_ih)
        gates = gates + layer_norm(recurrent, gain_hh.shape, gain_hh, parameters.bias_hh)
        i, f, g, o = gates.chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(layer_norm(c, gain_cell.shape, gain_cell, bias_cell))
        return h, (h, c)


class MogrifierCell(Cell):
    """Mogrifier LSTM: input and state gate each other first (Melis, Kocisky and Blunsom 2020).

    There are five rounds: x = 2 s(h Q_1') * x, h = 2 s(x R_1') * h, x = 2 s(h Q_2') * x and so on.
    The LSTM then reads the last x and h. Q and R are initialized to zero, so that the cell is an
    LSTM at first, because 2 s(0) = 1. The inputs must be vectors, so an embedding is required.
    """

    _ROUNDS = 5

    def extra_shapes(self, units: int, inputs: int) -> dict[str, tuple[int, ...]]:
        shapes = ((inputs, units), (units, inputs))
        return {f"mogrify_{i}": shapes[i % 2] for i in range(self._ROUNDS)}

    def step(
        self, projected: Tensor, state: State, parameters: LayerParameters, dtype: torch.dtype
    ) -> tuple[Tensor, State]:
        assert parameters.extra is not None
        x, (h, c) = projected, state
        for index, weight in enumerate(parameters.extra):
            if index % 2 == 0:
                x = 2.0 * torch.sigmoid(product(h, weight, dtype)) * x
            else:
                h = 2.0 * torch.sigmoid(product(x, weight, dtype)) * h
        gates = product(x, parameters.weight_ih, dtype)
        if parameters.bias_ih is not None:
            gates = gates + parameters.bias_ih
        return _LSTM.step(gates, (h, c), parameters, dtype)


_LSTM = LstmCell(cell_traits("lstm"))
