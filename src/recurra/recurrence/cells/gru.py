"""The gated recurrent unit."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from recurra.kernels.buffers import BUFFER_POOL
from recurra.recurrence.cells.cell import Cell, LayerParameters, State, TorchKernel
from recurra.recurrence.cells.time_loop import (
    LoopGradients,
    RecurrentWeights,
    TimeLoop,
    Trace,
    hidden_buffer,
)


class GruLoop(TimeLoop):
    """n = tanh(x_n + r * h_n), h_t = n + z * (h_{t-1} - n).

    With g = dL/dh_t every delta is g times a factor known from the forward pass alone:

        delta_n = g * (1 - z) * (1 - n^2)      delta_z = g * (h_{t-1} - n) * z * (1 - z)
        delta_hn = delta_n * r                 delta_r = delta_n * h_n * r * (1 - r)

    where delta_hn is the gradient of h_n; the others apply to both projections. They are stored as
    [n, r, z, hn]: the first three are the deltas of the input projection, and the last three those
    of the recurrent projection.
    """

    folds_bias_hh = False

    def forward(
        self, projected: Tensor, state: State, weights: RecurrentWeights
    ) -> tuple[State, Trace]:
        gates = projected
        hidden = hidden_buffer(gates.shape[0], state[0])
        width = hidden.shape[2]
        products = BUFFER_POOL.borrow(*gates.shape, like=gates)
        bias = weights.bias_hh if weights.bias_hh is not None else gates.new_zeros(gates.shape[2])
        steps = zip(gates.unbind(), products.unbind(), pairwise(hidden.unbind()), strict=True)
        for gate, product, (before, after) in steps:
            weights.add_forward(bias, before, out=product)
            r_z, n = gate[:, : 2 * width], gate[:, 2 * width :]
            r_z.add_(product[:, : 2 * width]).sigmoid_()
            n.addcmul_(gate[:, :width], product[:, 2 * width :]).tanh_()
            torch.lerp(n, before, gate[:, width : 2 * width], out=after)
        return (hidden[-1].clone(),), Trace(hidden, (gates, products))

    def backward(
        self,
        trace: Trace,
        grad_outputs: Tensor,
        grad_final: State,
        weights: RecurrentWeights,
        scale: float,
    ) -> LoopGradients:
        buffer = self._local_derivatives(trace)
        steps, batch, width = grad_outputs.shape
        deltas, grads = buffer.unbind(), grad_outputs.unbind()
        gates, _ = trace.buffers
        z = gates[:, :, width : 2 * width].unbind()
        grad, carried = grad_final[0] + grads[-1], torch.empty_like(grad_final[0])
        for t in range(steps - 1, -1, -1):
            deltas[t].mul_(grad.unsqueeze(1))
            base = grads[t - 1] if t > 0 else torch.zeros_like(grad)
            torch.addcmul(base, grad, z[t], value=scale, out=carried)
            hidden_delta = deltas[t][:, 1:].reshape(batch, 3 * width)
            weights.add_backward(carried, hidden_delta, out=grad, scale=scale)
        # The inputs' deltas come as [n, r, z]; parameters are ordered r, z, n.
        inputs = torch.cat([buffer[:, :, 1:3], buffer[:, :, :1]], dim=2)
        hidden = buffer[:, :, 1:]
        shape = (steps, batch, 3 * width)
        return LoopGradients(inputs.view(shape), hidden.reshape(shape), (grad,), None, buffer)

    def _local_derivatives(self, trace: Trace) -> Tensor:
        """The factors of g above, (T, B, 4, H) in the order n, r, z, hn."""
        gates, products = trace.buffers
        r, z, n = gates.chunk(3, dim=2)
        h_n = products.chunk(3, dim=2)[2]
        before = trace.hidden[:-1]
        factors = BUFFER_POOL.borrow(*before.shape[:2], 4, before.shape[2], like=before)
        d_n, d_r, d_z, d_hn = factors.unbind(2)
        torch.mul(n, n, out=d_n).neg_().add_(1).mul_(1 - z)
        torch.mul(d_n, r, out=d_hn)
        torch.mul(d_hn, h_n, out=d_r).mul_(1 - r)
        torch.sub(before, n, out=d_z).mul_(z).mul_(1 - z)
        return factors


class GruCell(Cell):
    """Gated recurrent unit: Cho et al. 2014 in torch's form; d2l 0.17 section 9.1.

    r = s(x_r + h_r), z = s(x_z + h_z), n = tanh(x_n + r * h_n), h_t = (1 - z) * n + z * h_{t-1},
    where x_* are the three parts of x_t W_ih' + b_ih and h_* those of h_{t-1} W_hh' + b_hh. The
    book multiplies r with h_{t-1} before the product; torch and cuDNN multiply after it.
    """

    loop = GruLoop()
    torch_kernel = TorchKernel(torch.gru, "GRU")

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
