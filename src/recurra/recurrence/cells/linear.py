"""Cells whose gates do not read the state: h_t = a_t * h_{t-1} + b_t.

Both a_t and b_t follow from x_t alone, so all products are computed for all steps at once, and only
`linear_scan.py` runs through time. The units of such a layer are mixed by the layers around it, see
`model/residual.py`.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from recurra.recurrence.cells.cell import Cell, LayerParameters, State


class LinearCell(Cell):
    """h_t = a_t * h_{t-1} + b_t, and an output that is a function of x_t and h_t."""

    @abstractmethod
    def coefficients(self, projected: Tensor, parameters: LayerParameters) -> tuple[Tensor, Tensor]:
        """Return a_t and b_t, (..., H), from x_t W_ih' + b_ih, (..., G*H), of one or all steps."""

    def output(self, projected: Tensor, h: Tensor) -> Tensor:
        """Return the output of the layer, (..., H)."""
        return h

    def step(
        self, projected: Tensor, state: State, parameters: LayerParameters, dtype: torch.dtype
    ) -> tuple[Tensor, State]:
        (h,) = state
        a, b = self.coefficients(projected, parameters)
        h = a * h + b
        return self.output(projected, h), (h,)


class MinGruCell(LinearCell):
    """h_t = (1 - z) * h_{t-1} + z * n, z = s(x_z), n = x_n: Feng et al. 2024, minGRU.

    "Were RNNs All We Needed?", arXiv 2410.01201: a GRU without reset gate, in which z and n depend
    only on x_t. The order is z, n.
    """

    def coefficients(self, projected: Tensor, parameters: LayerParameters) -> tuple[Tensor, Tensor]:
        x_z, n = projected.chunk(2, dim=-1)
        # 1 - s(x) is s(-x), without the rounding where z is almost 1.
        return torch.sigmoid(-x_z), torch.sigmoid(x_z) * n


class MinLstmCell(LinearCell):
    """h_t = f' * h_{t-1} + i' * g, f' = f / (f + i), i' = i / (f + i): Feng et al. 2024, minLSTM.

    i, f = s(...), g = x_g; the two gates are normalized to sum to 1. The order is i, f, g.
    """

    def coefficients(self, projected: Tensor, parameters: LayerParameters) -> tuple[Tensor, Tensor]:
        x_i, x_f, g = projected.chunk(3, dim=-1)
        # f / (f + i) = s(log f - log i), which cannot divide by zero.
        odds = logsigmoid(x_f) - logsigmoid(x_i)
        return torch.sigmoid(odds), torch.sigmoid(-odds) * g


class SruCell(LinearCell):
    """c_t = f * c_{t-1} + (1 - f) * x_c, y_t = r * tanh(c_t) + (1 - r) * x_y: Lei et al. 2017, SRU.

    f, r = s(...), as in the first version of arXiv 1709.02755. Later versions add v * c_{t-1} to
    the gates, which makes them depend on the state. The highway input x_y is a projection of x_t,
    like the gates. The order is c, f, r, y.
    """

    def coefficients(self, projected: Tensor, parameters: LayerParameters) -> tuple[Tensor, Tensor]:
        x_c, x_f, _, _ = projected.chunk(4, dim=-1)
        return torch.sigmoid(x_f), torch.sigmoid(-x_f) * x_c

    def output(self, projected: Tensor, h: Tensor) -> Tensor:
        _, _, x_r, x_y = projected.chunk(4, dim=-1)
        return torch.lerp(x_y, torch.tanh(h), torch.sigmoid(x_r))


class RgLruCell(LinearCell):
    """h_t = a * h_{t-1} + sqrt(1 - a^2) * (i * x), a = s(decay)^(8 r): De et al. 2024, RG-LRU.

    r, i = s(...), "Griffin", arXiv 2402.19427; the parameter `decay`, (H,), is learned. The input x
    is also a projection of x_t, as in the block of Griffin. The order is r, i, x.
    """

    _SHARPNESS = 8.0
    _LOWEST, _HIGHEST = 0.9, 0.999
    """Range of the initial s(decay)^8, with which the state halves in 7 to 700 steps if r is 1."""

    def extra_shapes(self, units: int, inputs: int) -> dict[str, tuple[int, ...]]:
        return {"decay": (units,)}

    def initialize_extra(self, name: str, parameter: Tensor) -> None:
        kept = torch.empty_like(parameter).uniform_(self._LOWEST, self._HIGHEST)
        # s(decay)^8 = kept, so softplus(-decay) = -log(kept) / 8.
        parameter.copy_(-torch.log(torch.expm1(-torch.log(kept) / self._SHARPNESS)))

    def coefficients(self, projected: Tensor, parameters: LayerParameters) -> tuple[Tensor, Tensor]:
        assert parameters.extra is not None
        (decay,) = parameters.extra
        x_r, x_i, x = projected.chunk(3, dim=-1)
        log_a = -self._SHARPNESS * torch.sigmoid(x_r) * softplus(-decay)
        # 1 - a^2 without the rounding where a is almost 1; the root has no slope at 0.
        scale = torch.sqrt(torch.clamp(-torch.expm1(2.0 * log_a), min=_TINY))
        return torch.exp(log_a), scale * torch.sigmoid(x_i) * x


_TINY = math.ldexp(1.0, -40)
