"""A cell made by the recipe of docs/architecture.md."""

import torch

from recurra.recurrence.cells.cell import Cell


class LeakyCell(Cell):
    """h_t = max(a_t, a_t / 8) with a_t = x_t W_ih' + b_ih + h_{t-1} W_hh' + b_hh."""

    name, num_gates, num_states = "leaky", 1, 1

    def step(self, projected, state, parameters, dtype):
        """Return the output and the state after one step."""
        (h,) = state
        h = torch.nn.functional.leaky_relu(
            projected + parameters.recurrent_product(h, dtype), 0.125
        )
        return h, (h,)
