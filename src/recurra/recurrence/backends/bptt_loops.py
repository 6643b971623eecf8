"""Forward and backward time loops of each cell, with hand-derived gradients.

Each loop does inside the time loop only what depends on the step before: one product with W_hh and
a handful of element-wise operations, written into buffers that exist already. Whatever the
backward pass knows in advance (the local derivatives of all gates at all steps) is computed for
all steps at once. Knows no autograd: `bptt.py` wraps it.

Derivations follow d2l section 8.7. Throughout, `deltas` are gradients of the loss with respect to
the pre-activations, so that each weight gradient is a single product over T*B rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from recurra.kernels.buffers import BUFFER_POOL
from recurra.recurrence.cells import State


@dataclass(frozen=True)
class RecurrentWeights:
    """W_hh (G*H, H) in the products' dtype, b_hh (G*H,) or None, W_hr (P, H) or None."""

    weight_hh: Tensor
    bias_hh: Tensor | None
    weight_hr: Tensor | None


@dataclass(frozen=True)
class Trace:
    """What the forward loop leaves for the backward loop.

    `hidden` is (T+1, B, H) and starts with the initial state; `buffers` are the cell's own, in the
    order its two loops agree on.
    """

    hidden: Tensor
    buffers: tuple[Tensor, ...]


@dataclass(frozen=True)
class LoopGradients:
    """What the backward loop returns.

    Attributes:
        input_deltas: (T, B, G*H), with respect to x_t W_ih' + b_ih.
        hidden_deltas: (T, B, G*H), with respect to h_{t-1} W_hh' + b_hh.
        initial: gradients of the initial state.
        weight_hr: (P, H) or None.
        buffer: what the deltas are views of; hold it as long as they are used.
    """

    input_deltas: Tensor
    hidden_deltas: Tensor
    initial: State
    weight_hr: Tensor | None
    buffer: Tensor


class TimeLoop(ABC):
    """The two loops of one cell."""

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


def add_product(
    base: Tensor, rows: Tensor, weight: Tensor, out: Tensor, alpha: float = 1.0
) -> None:
    """out = base + alpha * rows @ weight, with the product in the weight's dtype."""
    if rows.dtype == weight.dtype:
        torch.addmm(base, rows, weight, alpha=alpha, out=out)
    else:
        torch.add(base, torch.mm(rows.to(weight.dtype), weight), alpha=alpha, out=out)


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
        hidden = _hidden_buffer(projected.shape[0], state[0])
        recurrent = weights.weight_hh.t()
        rows = hidden.unbind()
        for x, (before, after) in zip(projected.unbind(), pairwise(rows), strict=True):
            add_product(x, before, recurrent, out=after)
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
            add_product(grads[t - 1], deltas[t], weights.weight_hh, out=grad, alpha=scale)
        self.derive(grad, hidden[1], out=deltas[0])
        initial = torch.zeros_like(grad)
        add_product(initial, deltas[0], weights.weight_hh, out=initial, alpha=scale)
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


class GruLoop(TimeLoop):
    """n = tanh(x_n + r * h_n), h_t = n + z * (h_{t-1} - n).

    With g = dL/dh_t every delta is g times a factor known from the forward pass alone:

        delta_n = g * (1 - z) * (1 - n^2)      delta_z = g * (h_{t-1} - n) * z * (1 - z)
        delta_hn = delta_n * r                 delta_r = delta_n * h_n * r * (1 - r)

    where delta_hn belongs to h_n and the others to both sides. They lie side by side as
    [n, r, z, hn], so that the first three are the inputs' and the last three the hidden state's.
    """

    def forward(
        self, projected: Tensor, state: State, weights: RecurrentWeights
    ) -> tuple[State, Trace]:
        gates = projected
        hidden = _hidden_buffer(gates.shape[0], state[0])
        width = hidden.shape[2]
        products = BUFFER_POOL.borrow(*gates.shape, like=gates)
        recurrent = weights.weight_hh.t()
        bias = weights.bias_hh if weights.bias_hh is not None else gates.new_zeros(gates.shape[2])
        steps = zip(gates.unbind(), products.unbind(), pairwise(hidden.unbind()), strict=True)
        for gate, product, (before, after) in steps:
            add_product(bias, before, recurrent, out=product)
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
            add_product(carried, hidden_delta, weights.weight_hh, out=grad, alpha=scale)
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
        hidden = _hidden_buffer(steps, state[0])
        cells = BUFFER_POOL.borrow(steps + 1, batch, width, like=gates)
        squashed = BUFFER_POOL.borrow(steps, batch, width, like=gates)
        exposed = (
            BUFFER_POOL.borrow(steps, batch, width, like=gates)
            if weights.weight_hr is not None
            else None
        )
        cells[0].copy_(state[1])
        recurrent = weights.weight_hh.t()
        h, c = hidden.unbind(), cells.unbind()
        m = h[1:] if exposed is None else exposed.unbind()
        for t, (gate, tanh_c) in enumerate(zip(gates.unbind(), squashed.unbind(), strict=True)):
            add_product(gate, h[t], recurrent, out=gate)
            gate[:, : 2 * width].sigmoid_()
            gate[:, 2 * width : 3 * width].tanh_()
            gate[:, 3 * width :].sigmoid_()
            i, f, g, o = gate.chunk(4, dim=1)
            torch.mul(f, c[t], out=c[t + 1]).addcmul_(i, g)
            torch.tanh(c[t + 1], out=tanh_c)
            torch.mul(o, tanh_c, out=m[t])
            if weights.weight_hr is not None:
                h[t + 1].copy_(m[t].to(weights.weight_hr.dtype) @ weights.weight_hr.t())
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
                grad_m = (grad_h.to(weights.weight_hr.dtype) @ weights.weight_hr).to(grad_h.dtype)
            grad_c.addcmul_(grad_m, leaks[t])
            deltas[t][:, :3].mul_(grad_c.unsqueeze(1))
            deltas[t][:, 3].mul_(grad_m)
            grad_c.mul_(forget[t])
            if scale != 1.0:
                grad_c.mul_(scale)
            base = grads[t - 1] if t > 0 else torch.zeros_like(grad_h)
            rows = deltas[t].view(batch, 4 * width)
            add_product(base, rows, weights.weight_hh, out=grad_h, alpha=scale)
        grad_hr = None
        if projected_grads is not None:
            grad_hr = projected_grads.flatten(0, 1).t() @ trace.buffers[3].flatten(0, 1)
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


def _hidden_buffer(steps: int, initial: Tensor) -> Tensor:
    """(T+1, B, H), the first row filled. Not borrowed: the caller keeps its rows."""
    hidden = initial.new_empty(steps + 1, *initial.shape)
    hidden[0].copy_(initial)
    return hidden
