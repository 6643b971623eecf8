"""One time step of every cell, written as its equations.

A cell knows neither the batch loop nor the time loop, and no gradient: `reference.py` repeats
`step` through time and lets autograd do the rest. What a layer reads from outside at step t comes
in already projected, x_t W_ih' + b_ih, because that product does not depend on the past.

Gate order and parameter layout are torch.nn's: i, f, g, o for the LSTM, r, z, n for the GRU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from recurra.errors import ConfigError
from recurra.recurrence.precision import product

State = tuple[Tensor, ...]
"""What a layer carries from step to step: (h,) or (h, c), each (B, H); () without hidden state."""


class LayerParameters(NamedTuple):
    """The parameters of one layer, as torch.nn names and shapes them.

    `weight_ih` (G*H, I), `weight_hh` (G*H, H), biases (G*H,) or None; `weight_hr` (P, H) only for
    an LSTM with projection, whose `weight_hh` is then (G*H, P). The cell without hidden state has
    neither `weight_hh` nor `bias_hh`.
    """

    weight_ih: Tensor
    weight_hh: Tensor | None = None
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    weight_hr: Tensor | None = None

    def recurrent_product(self, h: Tensor, dtype: torch.dtype) -> Tensor:
        """h W_hh' + b_hh, shape (B, G*H); the product in `dtype`, the result in h's."""
        assert self.weight_hh is not None
        recurrent = product(h, self.weight_hh, dtype)
        return recurrent if self.bias_hh is None else recurrent + self.bias_hh


class Cell(ABC):
    """One kind of recurrence."""

    name: str
    num_gates: int
    num_states: int

    @abstractmethod
    def step(
        self, projected: Tensor, state: State, parameters: LayerParameters, dtype: torch.dtype
    ) -> tuple[Tensor, State]:
        """One step in time.

        Args:
            projected: x_t W_ih' + b_ih, shape (B, G*H).
            state: the state before the step, `num_states` tensors.
            parameters: the layer's parameters.
            dtype: number format of the matrix products.

        Returns:
            The layer's output at this step, (B, H), and the state after it.
        """


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


CELLS: dict[str, Cell] = {
    cell.name: cell for cell in (TanhCell(), ReluCell(), GruCell(), LstmCell(), FeedForwardCell())
}


def find_cell(name: str) -> Cell:
    """The cell of this name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in CELLS:
        raise ConfigError(f"unknown cell {name!r}; there are {', '.join(CELLS)}")
    return CELLS[name]


def check_shapes(cell: Cell, inputs: Tensor, parameters: LayerParameters) -> None:
    """See to it that a layer's parameters fit each other and its inputs; kernels trust that.

    Raises:
        ConfigError: they do not.
    """
    takes_numbers = inputs.is_floating_point()
    if inputs.dim() != 2 + takes_numbers or inputs.shape[0] < 1:
        raise ConfigError(
            "a layer reads numbers (T, B, I) or ids (T, B) of at least one step, not"
            f" {tuple(inputs.shape)}"
        )
    rows, width = parameters.weight_ih.shape
    units = rows // cell.num_gates
    projection = parameters.weight_hr
    outputs = units if projection is None else len(projection)
    expected = {
        "weight_ih": (cell.num_gates * units, inputs.shape[-1] if takes_numbers else width),
        "weight_hh": (rows, outputs),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
        "weight_hr": (outputs, units),
    }
    for name, shape in expected.items():
        parameter = getattr(parameters, name)
        if parameter is not None and tuple(parameter.shape) != shape:
            raise ConfigError(f"{name} of {cell.name} is {tuple(parameter.shape)}, and not {shape}")
