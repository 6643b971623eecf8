"""The linear scan on a GPU by Triton's kernels: when they can be used, and how they are launched.

The builds of torch for CUDA and ROCm on Linux install Triton. Triton compiles the kernels on first
use, for which it needs a C compiler, and stores the result in its cache directory. A launch
allocates memory through torch only and does not wait for the GPU, so a CUDA graph can capture it
once the kernels are compiled; `unavailable` compiles all of them.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recurra.runtime.distributed import started_rank

BLOCK = 64
"""Number of columns of a program, one for each of its threads."""

_COLUMNS_PER_MULTIPROCESSOR = 128
"""Number of columns per multiprocessor whose loads saturate the memory bandwidth of a GPU. With 16
steps of two fp32 arrays, 128 columns load 16 KiB at a time; the bandwidth of an H100 times its
latency of about 0.7 us is 17 KiB per multiprocessor."""

_MIN_CHUNK_STEPS = 64
"""Minimum number of steps of a chunk."""

_MIN_CHUNKS = 4
"""Minimum number of chunks, because the computation in chunks reads a and b twice."""

_logger = logging.getLogger(__name__)
_reasons: dict[torch.device, str | None] = {}


class _Launch(NamedTuple):
    """The division of a scan into programs.

    Attributes:
        steps, columns: size of the scan.
        length: number of steps of a chunk.
        chunks: number of chunks.
        warps: number of warps of a program.
    """

    steps: int
    columns: int
    length: int
    chunks: int
    warps: int

    @property
    def grid(self) -> tuple[int, int]:
        return max(1, -(-self.columns // BLOCK)), self.chunks

    @property
    def constants(self) -> dict[str, Any]:
        return {"block": BLOCK, "num_warps": self.warps}


def chunk_length(steps: int, columns: int, multiprocessors: int) -> int:
    """Return the number of steps of a chunk; `steps` if the sequence is not divided.

    If there are at least 128 columns per multiprocessor, the loads of a sequential scan saturate
    the memory bandwidth. Otherwise the sequence is divided into as many chunks as it takes to load
    the same amount at a time, with at least 64 steps each. There are at most sqrt(steps) chunks,
    because each chunk reads the results of all chunks before it. The sequence is not divided into
    fewer than 4 chunks. The rule follows from the bandwidth and the latency of an H100; it has not
    been measured.

    Args:
        steps, columns: size of the scan.
        multiprocessors: number of multiprocessors of the GPU.
    """
    missing = _COLUMNS_PER_MULTIPROCESSOR * multiprocessors // max(columns, 1)
    chunks = min(missing, steps // _MIN_CHUNK_STEPS, math.isqrt(steps))
    return steps if chunks < _MIN_CHUNKS else -(-steps // chunks)


def forward(a: Tensor, b: Tensor, initial: Tensor, length: int | None = None) -> Tensor:
    """Return h_1 to h_T, (T, ...).

    Args:
        a, b: (T, ...), contiguous and fp32, on one GPU.
        initial: h_0, (...), likewise.
        length: number of steps of a chunk; None for that of `chunk_length`.
    """
    outputs = torch.empty_like(b)
    launch = _divide(a, initial, length)
    with torch.cuda.device_of(a):  # type: ignore[no-untyped-call]
        products, totals = _fold_chunks(launch, a, b, 1.0, is_reverse=False)
        _kernels().forward[launch.grid](
            a, b, initial, products, totals, outputs, launch.steps, launch.columns, launch.length,
            is_chunked=launch.chunks > 1, **launch.constants,
        )  # fmt: skip
    return outputs


def backward(
    saved: tuple[Tensor, Tensor, Tensor],
    grad_outputs: Tensor,
    scale: float,
    length: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a, b and the initial state.

    Args:
        saved: a, the initial state, and the result of `forward`.
        grad_outputs: the gradient of the result, contiguous.
        scale: multiplies every gradient that passes from one step to the step before.
        length: as in `forward`.
    """
    a, initial, outputs = saved
    grad_a, grad_b, grad_initial = map(torch.empty_like, (a, a, initial))
    launch = _divide(a, initial, length)
    with torch.cuda.device_of(a):  # type: ignore[no-untyped-call]
        products, totals = _fold_chunks(launch, a, grad_outputs, scale, is_reverse=True)
        _kernels().backward[launch.grid](
            a, initial, outputs, grad_outputs, products, totals, grad_a, grad_b, grad_initial,
            launch.steps, launch.columns, launch.length, launch.chunks, scale,
            is_chunked=launch.chunks > 1, **launch.constants,
        )  # fmt: skip
    return grad_a, grad_b, grad_initial


def _divide(a: Tensor, initial: Tensor, length: int | None) -> _Launch:
    steps, columns = len(a), initial.numel()
    multiprocessors, warp = _properties(a.device)
    if length is None:
        length = chunk_length(steps, columns, multiprocessors)
    return _Launch(steps, columns, length, -(-steps // length), BLOCK // warp)


@cache
def _properties(device: torch.device) -> tuple[int, int]:
    """Return the number of multiprocessors of a GPU and the number of threads of a warp."""
    if device.type == "cpu":  # Triton's interpreter executes one program at a time.
        return 1, 32
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, found.warp_size


def _fold_chunks(
    launch: _Launch, a: Tensor, b: Tensor, scale: float, *, is_reverse: bool
) -> tuple[Tensor, Tensor]:
    """Return product and total of each chunk, (chunks, columns) each; see `scan_kernels`."""
    if launch.chunks == 1:
        return a, a  # The kernels read neither argument if there is only one chunk.
    products = a.new_empty(launch.chunks, launch.columns)
    totals = torch.empty_like(products)
    _kernels().fold_chunks[launch.grid](
        a, b, products, totals, launch.steps, launch.columns, launch.length, scale,
        is_reverse=is_reverse, **launch.constants,
    )  # fmt: skip
    return products, totals


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernels cannot compute a scan of these tensors, or None if they can.

    The interpreter of Triton (TRITON_INTERPRET=1) also computes on a CPU.
    """
    device = tensors[0].device
    if any(t.dtype != torch.float32 or t.device != device for t in tensors):
        return "Triton's kernels scan fp32 tensors on one device"
    if device.type == "cuda" or (device.type == "cpu" and _is_interpreted()):
        return unavailable(device)
    return f"Triton's kernels scan on a GPU, not on {device.type}"


def _is_interpreted() -> bool:
    try:
        knobs: Any = import_module("triton.knobs")
    except ImportError:
        return False
    return bool(knobs.runtime.interpret)


def unavailable(device: torch.device) -> str | None:
    """Return why Triton cannot be used on a device, or None after a check of all kernels.

    The first call in a process compiles the kernels and compares their results with exact ones. The
    reason is logged once at level INFO. Nothing can be compiled while a CUDA graph is captured, so
    the first call must come before that.
    """
    if device not in _reasons:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return "Triton's kernels must be compiled before a CUDA graph is captured"
        _reasons[device] = _check(device)
    return _reasons[device]


def _check(device: torch.device) -> str | None:
    """Return why the kernels cannot be used, and log it."""
    try:
        reason = None if _is_exact(device) else "the results of Triton's kernels are wrong"
    except Exception as error:  # Compilers, linkers and drivers fail with errors of many types.
        text = (str(error).strip().splitlines() or [""])[0]
        reason = f"Triton cannot be used: {type(error).__name__}: {text}"
    if reason is not None and started_rank() == 0:
        _logger.info("linear scans are computed step by step on %s: %s", device, reason)
    return reason


def _is_exact(device: torch.device) -> bool:
    """Return whether all kernels give the exact results of a scan of small integers."""
    steps, columns = 7, 3
    fp32: Any = {"dtype": torch.float32, "device": device}
    a = torch.tensor([1, -1, 2], **fp32).expand(steps, columns).contiguous()
    b = torch.arange(1, steps * columns + 1, **fp32).view(steps, columns)
    initial = torch.ones(columns, **fp32)
    expected = [initial]
    for a_t, b_t in zip(a, b, strict=True):
        expected.append(a_t * expected[-1] + b_t)
    grads = [b[-1]]
    for a_t, grad in zip(a[1:].flip(0), b[:-1].flip(0), strict=True):
        grads.append(grad + a_t * grads[-1])
    grad_b, outputs = torch.stack(grads[::-1]), torch.stack(expected[1:])
    exact = (outputs, torch.stack(expected[:-1]) * grad_b, grad_b, a[0] * grad_b[0])
    return all(
        torch.equal(found, correct)
        for length in (steps, 3)
        for found, correct in zip(
            (
                forward(a, b, initial, length),
                *backward((a, initial, outputs), b, 1.0, length),
            ),
            exact,
            strict=True,
        )
    )


def _kernels() -> Any:
    """Return the module of the kernels, whose import takes about half a second."""
    return import_module("recurra.recurrence.backends.scan_kernels")
