"""Long short-term memory, with an optional projection."""

from __future__ import annotations

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
from recurra.recurrence.precision import matrix_product, product


class LstmLoop(TimeLoop):
    """c_t = f * c_{t-1} + i * g, m_t = o * tanh(c_t), h_t = m_t or m_t W_hr'.

    With dm = dL/dm_t and dc = dL/dc_t (dm's part o * (1 - tanh(c)^2) * dm included):

        delta_o = dm * tanh(c) * o * (1 - o)        delta_i = dc * g * i * (1 - i)
        delta_f = dc * c_{t-1} * f * (1 - f)        delta_g = dc * i * (1 - g^2)

    so the factors of dm and dc are known in advance for all steps.
    """

    def forward(
        self, projected: Tensor, state: State, weights: RecurrentWeights
    ) -> tuple[State, Trace]:
        gates = projected
        steps, batch, width = gates.shape[0], gates.shape[1], gates.shape[2] // 4
        hidden = hidden_buffer(steps, state[0])
        cells = BUFFER_POOL.borrow(steps + 1, batch, width, like=gates)
        squashed = BUFFER_POOL.borrow(steps, batch, width, like=gates)
        exposed = (
            BUFFER_POOL.borrow(steps, batch, width, like=gates)
            if weights.weight_hr is not None
            else None
        )
        cells[0].copy_(state[1])
        h, c = hidden.unbind(), cells.unbind()
        m = h[1:] if exposed is None else exposed.unbind()
        for t, (gate, tanh_c) in enumerate(zip(gates.unbind(), squashed.unbind(), strict=True)):
            weights.add_forward(gate, h[t], out=gate)
            gate[:, : 2 * width].sigmoid_()
            gate[:, 2 * width : 3 * width].tanh_()
            gate[:, 3 * width :].sigmoid_()
            i, f, g, o = gate.chunk(4, dim=1)
            torch.mul(f, c[t], out=c[t + 1]).addcmul_(i, g)
            torch.tanh(c[t + 1], out=tanh_c)
            torch.mul(o, tanh_c, out=m[t])
            if weights.weight_hr is not None:
                h[t + 1].copy_(weights.project(m[t]))
        buffers = (gates, cells, squashed) + (() if exposed is None else (exposed,))
        return (hidden[-1].clone(), cells[-1].clone()), Trace(hidden, buffers)

    def backward(
        self,
        trace: Trace,
        grad_outputs: Tensor,
        grad_final: State,
        weights: RecurrentWeights,
        scale: float,
    ) -> LoopGradients:
        gates = trace.buffers[0]
        steps, batch, width = gates.shape[0], gates.shape[1], gates.shape[2] // 4
        factors, to_cell = self._local_derivatives(trace)
        deltas, leaks = factors.unbind(), to_cell.unbind()
        forget = gates[:, :, width : 2 * width].unbind()
        grads = grad_outputs.unbind()
        grad_h, grad_c = grad_final[0] + grads[-1], grad_final[1].clone()
        projected_grads = torch.empty_like(grad_outputs) if weights.weight_hr is not None else None
        for t in range(steps - 1, -1, -1):
            grad_m = grad_h
            if weights.weight_hr is not None and projected_grads is not None:
                projected_grads[t].copy_(grad_h)
                grad_m = weights.project_back(grad_h)
            grad_c.addcmul_(grad_m, leaks[t])
            deltas[t][:, :3].mul_(grad_c.unsqueeze(1))
            deltas[t][:, 3].mul_(grad_m)
            grad_c.mul_(forget[t])
            if scale != 1.0:
                grad_c.mul_(scale)
            base = grads[t - 1] if t > 0 else torch.zeros_like(grad_h)
            rows = deltas[t].view(batch, 4 * width)
            weights.add_backward(base, rows, out=grad_h, scale=scale)
        grad_hr = None
        if projected_grads is not None:
            rows = projected_grads.flatten(0, 1).t()
            grad_hr = matrix_product(rows, trace.buffers[3].flatten(0, 1), weights.dtype)
        flat = factors.view(steps, batch, 4 * width)
        return LoopGradients(flat, flat, (grad_h, grad_c), grad_hr, factors)

    def _local_derivatives(self, trace: Trace) -> tuple[Tensor, Tensor]:
        """The factors of dc (i, f, g) and dm (o), (T, B, 4, H); and dm's share of dc, (T, B, H)."""
        gates, cells, tanh_c = trace.buffers[:3]
        before = cells[:-1]
        i, f, g, o = gates.chunk(4, dim=2)
        factors = BUFFER_POOL.borrow(*before.shape[:2], 4, before.shape[2], like=before)
        to_cell = BUFFER_POOL.borrow(*before.shape, like=before)
        d_i, d_f, d_g, d_o = factors.unbind(2)
        torch.mul(i, 1 - i, out=d_i).mul_(g)
        torch.mul(f, 1 - f, out=d_f).mul_(before)
        torch.mul(g, g, out=d_g).neg_().add_(1).mul_(i)
        torch.mul(o, 1 - o, out=d_o).mul_(tanh_c)
        torch.mul(tanh_c, tanh_c, out=to_cell).neg_().add_(1).mul_(o)
        return factors, to_cell


class LstmCell(Cell):
    """Long short-term memory: Hochreiter & Schmidhuber 1997 with forget gate; d2l 0.17 section 9.2.

    i, f, o = s(...), g = tanh(...), c_t = f * c_{t-1} + i * g, h_t = o * tanh(c_t); with a
    projection (Sak et al. 2014) h_t = (o * tanh(c_t)) W_hr'.
    """

    loop = LstmLoop()
    torch_kernel = TorchKernel(torch.lstm, "LSTM", is_fused_on_cpu=True)

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
