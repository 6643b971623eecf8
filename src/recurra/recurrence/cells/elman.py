"""The Elman cells: one gate, with tanh or ReLU."""

from __future__ import annotations

from abc import abstractmethod
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


class ElmanLoop(TimeLoop):
    """h_t = phi(a_t) with a_t = x_t + h_{t-1} W_hh'; delta_t = phi'(a_t) * dL/dh_t."""

    @abstractmethod
    def activate(self, h: Tensor) -> None:
        """phi, in place."""

    @abstractmethod
    def derive(self, grad: Tensor, h: Tensor, out: Tensor) -> None:
        """out = grad * phi'(a), with phi' written in terms of h = phi(a)."""

    def forward(
        self, projected: Tensor, state: State, weights: RecurrentWeights
    ) -> tuple[State, Trace]:
        hidden = hidden_buffer(projected.shape[0], state[0])
        rows = hidden.unbind()
        for x, (before, after) in zip(projected.unbind(), pairwise(rows), strict=True):
            weights.add_forward(x, before, out=after)
            self.activate(after)
        return (hidden[-1].clone(),), Trace(hidden, ())

    def backward(
        self,
        trace: Trace,
        grad_outputs: Tensor,
        grad_final: State,
        weights: RecurrentWeights,
        scale: float,
    ) -> LoopGradients:
        buffer = BUFFER_POOL.borrow(*grad_outputs.shape, like=trace.hidden)
        deltas, hidden = buffer.unbind(), trace.hidden.unbind()
        grads = grad_outputs.unbind()
        grad = grad_final[0] + grads[-1]
        for t in range(len(deltas) - 1, 0, -1):
            self.derive(grad, hidden[t + 1], out=deltas[t])
            weights.add_backward(grads[t - 1], deltas[t], out=grad, scale=scale)
        self.derive(grad, hidden[1], out=deltas[0])
        initial = torch.zeros_like(grad)
        weights.add_backward(initial, deltas[0], out=initial, scale=scale)
        return LoopGradients(buffer, buffer, (initial,), None, buffer)


class TanhLoop(ElmanLoop):
    """phi = tanh, phi' = 1 - h^2."""

    def activate(self, h: Tensor) -> None:
        h.tanh_()

    def derive(self, grad: Tensor, h: Tensor, out: Tensor) -> None:
        torch.ops.aten.tanh_backward.grad_input(grad, h, grad_input=out)


class ReluLoop(ElmanLoop):
    """phi = max(0, a), phi' = 1 where h > 0."""

    def activate(self, h: Tensor) -> None:
        h.relu_()

    def derive(self, grad: Tensor, h: Tensor, out: Tensor) -> None:
        torch.ops.aten.threshold_backward.grad_input(grad, h, 0, grad_input=out)


class TanhCell(Cell):
    """h_t = tanh(x_t W_ih' + b_ih + h_{t-1} W_hh' + b_hh): Elman 1990; d2l 0.17 section 8.4."""

    loop = TanhLoop()
    torch_kernel = TorchKernel(torch.rnn_tanh, "RNN_TANH")

    def step(
        self, projected: Tensor, state: State, parameters: LayerParameters, dtype: torch.dtype
    ) -> tuple[Tensor, State]:
        (h,) = state
        h = torch.tanh(projected + parameters.recurrent_product(h, dtype))
        return h, (h,)


class ReluCell(Cell):
    """h_t = max(0, x_t W_ih' + b_ih + h_{t-1} W_hh' + b_hh)."""

    loop = ReluLoop()
    torch_kernel = TorchKernel(torch.rnn_relu, "RNN_RELU")

    def step(
        self, projected: Tensor, state: State, parameters: LayerParameters, dtype: torch.dtype
    ) -> tuple[Tensor, State]:
        (h,) = state
        h = torch.relu(projected + parameters.recurrent_product(h, dtype))
        return h, (h,)
