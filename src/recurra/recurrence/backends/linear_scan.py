"""The elementwise recurrence h_t = a_t * h_{t-1} + b_t, with its gradients.

If the gates of a cell do not read the state, its products are computed for all steps at once, and
only this recurrence runs through time. It is sequential over time and parallel over everything
else, which on a CPU is faster than scans that are also parallel over time. On a GPU, long sequences
with few columns are divided into chunks, see `triton_scan.py`.

Martin and Cundy 2018, "Parallelizing Linear Recurrent Neural Nets Over Sequence Length", has the
equations of the gradients: dL/db_t = dL/dh_t + a_{t+1} dL/db_{t+1}, and dL/da_t = h_{t-1} dL/db_t.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref
from typing import Any

import torch
from torch import Tensor

from recurra.errors import ConfigError
from recurra.kernels import library, structures
from recurra.recurrence.backends import triton_scan
from recurra.recurrence.backends.reference import scale_gradient
from recurra.recurrence.backends.requirements import (
    is_observed,
    is_traced,
    is_transformed,
    needs_graph,
)

BACKENDS = ("reference", "bptt", "native", "triton")
"""The plain loop, torch with hand-derived gradients, and the compiled kernels of CPU and GPU."""

_Saved = tuple[Tensor, Tensor, Tensor]
"""a, the initial state and all later states."""

_Gradients = tuple[Tensor, Tensor, Tensor]
"""The gradients of a, b and the initial state."""


def linear_scan(
    a: Tensor,
    b: Tensor,
    initial: Tensor | None = None,
    backend: str = "auto",
    *,
    recurrent_gradient_scale: float = 1.0,
) -> Tensor:
    """Return all states after the initial one.

    Args:
        a, b: (T, ...) of one shape, T >= 1.
        initial: h_0, (...); None is zero.
        backend: auto, or one of `BACKENDS`.
        recurrent_gradient_scale: multiplies every gradient that passes from one step to the step
            before.

    Returns:
        (T, ...): h_1 to h_T.

    Raises:
        ConfigError: the shapes do not fit, or the backend is unknown or unsupported.

    Examples:
        >>> import torch
        >>> from recurra.recurrence.backends.linear_scan import linear_scan
        >>> a, b = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1.0, 0.0, 2.0])
        >>> linear_scan(a, b)
        tensor([1.0000, 0.5000, 2.2500])
    """
    if initial is None:
        initial = a.new_zeros(a.shape[1:])
    if a.shape != b.shape or a.dim() < 1 or len(a) < 1 or initial.shape != a.shape[1:]:
        raise ConfigError(
            "a scan needs a and b of one shape (T, ...) with T >= 1 and a state of shape (...),"
            f" not {tuple(a.shape)}, {tuple(b.shape)} and {tuple(initial.shape)}"
        )
    if backend == "auto":
        backend = choose_backend(a, b, initial)
    if backend not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise ConfigError(f"unknown backend {backend!r}; choose one of auto, {known}")
    if backend == "reference":
        return _reference(a, b, initial, recurrent_gradient_scale)
    if backend == "native" and not _compiles(a, b, initial):
        raise ConfigError("the native backend scans fp32 tensors on a CPU; use auto or bptt")
    if backend == "triton":
        reason = triton_scan.unsupported(a, b, initial)
        if reason is not None:
            raise ConfigError(f"{reason}; use auto or bptt")
    apply: Any = _LinearScan.apply
    outputs: Tensor = apply(a, b, initial, backend, recurrent_gradient_scale)
    return outputs


def choose_backend(*tensors: Tensor) -> str:
    """Return the backend that `auto` selects for a, b and the initial state."""
    if is_transformed() or is_observed() or is_traced(*tensors):
        return "reference"
    if _compiles(*tensors) and library.is_available():
        return "native"
    a = tensors[0]
    # Triton takes more time than torch to launch a kernel, so torch computes a single step.
    # torch.compile can trace the loop of torch, but not the check of Triton's kernels.
    is_fused = a.device.type == "cuda" and len(a) > 1 and not torch.compiler.is_compiling()
    return "triton" if is_fused and triton_scan.unsupported(*tensors) is None else "bptt"


def _compiles(*tensors: Tensor) -> bool:
    return all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)


def _reference(a: Tensor, b: Tensor, state: Tensor, scale: float) -> Tensor:
    """Compute the equation step by step, with gradients by autograd."""
    outputs = []
    for a_t, b_t in zip(a, b, strict=True):
        if scale != 1.0:
            state = scale_gradient(state, scale)
        state = a_t * state + b_t
        outputs.append(state)
    return torch.stack(outputs)


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, initial: Tensor, backend: str, scale: float
    ) -> Tensor:
        a, b, initial = a.contiguous(), b.contiguous(), initial.contiguous()
        outputs = _FORWARD[backend](a, b, initial)
        ctx.backend, ctx.scale = backend, scale
        ctx.save_for_backward(a, b, initial, outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        a, b, initial, outputs = ctx.saved_tensors
        if needs_graph(grad_outputs):
            return (*_backward_with_graph(ctx, a, b, initial, grad_outputs), None, None)
        saved = a, initial, outputs
        gradients = _BACKWARD[ctx.backend](saved, grad_outputs.contiguous(), ctx.scale)
        return (*gradients, None, None)


def _loop_forward(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
    outputs, before = torch.empty_like(b), initial
    for a_t, b_t, h_t in zip(a, b, outputs, strict=True):
        torch.addcmul(b_t, a_t, before, out=h_t)
        before = h_t
    return outputs


def _loop_backward(saved: _Saved, grad_outputs: Tensor, scale: float) -> _Gradients:
    a, initial, outputs = saved
    grad_b, later = torch.empty_like(a), torch.zeros_like(initial)
    for a_t, grad, grad_b_t in reversed(list(zip(a, grad_outputs, grad_b, strict=True))):
        torch.add(grad, later, out=grad_b_t)
        later = scale * a_t * grad_b_t
    before = torch.cat([initial.unsqueeze(0), outputs[:-1]])
    return grad_b * before, grad_b, later


def _native_forward(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
    outputs = torch.empty_like(b)
    scan = _describe(a, outputs, initial, 1.0)
    scan.point(b=b)
    library.load().recurra_scan_forward(byref(scan))
    return outputs


def _native_backward(saved: _Saved, grad_outputs: Tensor, scale: float) -> _Gradients:
    a, initial, outputs = saved
    scan = _describe(a, outputs, initial, scale)
    grad_a, grad_b = torch.empty_like(a), torch.empty_like(a)
    grad_initial, grad_final = torch.empty_like(initial), torch.zeros_like(initial)
    scan.point(
        grad_outputs=grad_outputs,
        grad_final=grad_final,
        grad_a=grad_a,
        grad_b=grad_b,
        grad_initial=grad_initial,
    )
    library.load().recurra_scan_backward(byref(scan))
    return grad_a, grad_b, grad_initial


_FORWARD: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "bptt": _loop_forward,
    "native": _native_forward,
    "triton": triton_scan.forward,
}
"""The functions that compute all later states from a, b and the initial state."""

_BACKWARD: dict[str, Callable[[_Saved, Tensor, float], _Gradients]] = {
    "bptt": _loop_backward,
    "native": _native_backward,
    "triton": triton_scan.backward,
}
"""The functions that compute the gradients from the tensors that the forward pass saved, the
gradient of the states and `recurrent_gradient_scale`."""


def _backward_with_graph(
    ctx: Any, a: Tensor, b: Tensor, initial: Tensor, grad_outputs: Tensor
) -> list[Tensor | None]:
    """Return the gradients by the plain loop, with a graph if gradients are enabled."""
    creates, needed = torch.is_grad_enabled(), ctx.needs_input_grad[:3]
    with torch.enable_grad():
        # With aliases, a path between two of them outside this scan does not count twice.
        given = (a.view_as(a), b.view_as(b), initial.view_as(initial))
        outputs = _reference(*given, ctx.scale)
    wanted = [tensor for tensor, need in zip(given, needed, strict=True) if need]
    found = iter(torch.autograd.grad(outputs, wanted, grad_outputs, create_graph=creates))
    return [next(found) if need else None for need in needed]


def _describe(a: Tensor, outputs: Tensor, initial: Tensor, scale: float) -> structures.Description:
    scan = structures.LinearScan(
        threads=library.threads(),
        recurrent_scale=scale,
        steps=len(a),
        columns=initial.numel(),
    )
    scan.point(a=a, initial=initial, outputs=outputs)
    return scan
