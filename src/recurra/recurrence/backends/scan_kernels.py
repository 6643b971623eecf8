"""Triton kernels of the linear scan, for GPUs; `triton_scan.py` launches them.

A program computes one block of columns. The equation is sequential over time, so a program is
limited by the latency of memory. It therefore loads `AHEAD` steps before it computes the first of
them. A long sequence can be divided into chunks that are computed in parallel. The state after a
chunk is an affine function of the state before it, h -> product * h + total. `fold_chunks` computes
product and total of every chunk. A program of `forward` first applies the functions of all earlier
chunks, and a program of `backward` those of all later chunks.

Kernels are specialized for their constants only, so a tensor of another size needs no compilation.
Offsets have 64 bits, because steps times columns can exceed 2^31.
"""

# Triton's decorator and the functions of its language have no types.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,assignment"

from __future__ import annotations

import triton
import triton.language as tl

AHEAD = tl.constexpr(16)
"""Number of time steps that are loaded before the first of them is computed."""

_GENERAL = (
    "a", "b", "initial", "outputs", "grad_outputs", "grad_a", "grad_b", "grad_initial",
    "products", "totals", "steps", "columns", "length", "chunks", "scale",
)  # fmt: skip
"""Arguments that no kernel is specialized for: neither for the values of integers, nor for the
alignment of pointers."""


@triton.jit
def offsets(t, columns, column):
    """Return the 64-bit offsets of the entries `column` of step t in a tensor (T, columns)."""
    return t.to(tl.int64) * columns + column


@triton.jit
def load_steps(pointer, first, start, stop, columns, column, direction: tl.constexpr):
    """Return a tuple of AHEAD steps: first, first + direction, ...

    A step outside [start, stop) is replaced by the nearest one inside, which takes fewer registers
    than a mask for each step. The caller ignores it.
    """
    loaded = ()
    for k in tl.static_range(AHEAD):
        t = tl.minimum(tl.maximum(first + k * direction, start), stop - 1)
        place = offsets(t, columns, column)
        loaded += (tl.load(pointer + place, mask=column < columns, other=0.0),)
    return loaded


@triton.jit
def apply_chunks(state, products, totals, first, count, columns, column, direction: tl.constexpr):
    """Return the state after `count` chunks: first, first + direction, ..."""
    for begin in range(0, count, AHEAD):
        row = first + begin * direction
        some_products = load_steps(products, row, 0, first + count, columns, column, direction)
        some_totals = load_steps(totals, row, 0, first + count, columns, column, direction)
        for k in tl.static_range(AHEAD):
            # The product of a chunk can be infinite; times a state of 0 it would be NaN.
            later = tl.where(state == 0.0, 0.0, some_products[k] * state) + some_totals[k]
            state = tl.where(begin + k < count, later, state)
    return state


@triton.jit(do_not_specialize=_GENERAL, do_not_specialize_on_alignment=_GENERAL)
def fold_chunks(
    a, b, products, totals, steps: tl.int32, columns: tl.int64, length: tl.int32, scale: tl.float32,
    is_reverse: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write product and total of each chunk, (chunks, columns) each.

    If is_reverse, b is the gradient of the outputs, and the affine function maps the gradient that
    passes into the last step of the chunk to the one that leaves its first step. The gradient that
    passes from step t to the step before is scale * a_t * dL/dh_t.
    """
    column = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    chunk = tl.program_id(1)
    start = chunk * length
    stop = tl.minimum(start + length, steps)
    product = tl.full((block,), 1.0, tl.float32)
    total = tl.full((block,), 0.0, tl.float32)
    for done in range(0, length, AHEAD):
        direction: tl.constexpr = -1 if is_reverse else 1
        first = stop - 1 - done if is_reverse else start + done
        some_a = load_steps(a, first, start, stop, columns, column, direction)
        some_b = load_steps(b, first, start, stop, columns, column, direction)
        for k in tl.static_range(AHEAD):
            inside = done + k < stop - start
            factor = some_a[k] * scale if is_reverse else some_a[k]
            later = factor * (total + some_b[k]) if is_reverse else factor * total + some_b[k]
            product = tl.where(inside, factor * product, product)
            total = tl.where(inside, later, total)
    place = offsets(chunk, columns, column)
    tl.store(products + place, product, mask=column < columns)
    tl.store(totals + place, total, mask=column < columns)


@triton.jit(do_not_specialize=_GENERAL, do_not_specialize_on_alignment=_GENERAL)
def forward(
    a, b, initial, products, totals, outputs,
    steps: tl.int32, columns: tl.int64, length: tl.int32,
    is_chunked: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write h_t = a_t * h_{t-1} + b_t of the steps of one chunk."""
    column = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    chunk = tl.program_id(1)
    start = chunk * length
    stop = tl.minimum(start + length, steps)
    state = tl.load(initial + column, mask=column < columns, other=0.0)
    if is_chunked:
        state = apply_chunks(state, products, totals, 0, chunk, columns, column, 1)
    for first in range(start, stop, AHEAD):
        some_a = load_steps(a, first, start, stop, columns, column, 1)
        some_b = load_steps(b, first, start, stop, columns, column, 1)
        for k in tl.static_range(AHEAD):
            t = first + k
            state = some_a[k] * state + some_b[k]
            inside = (column < columns) & (t < stop)
            tl.store(outputs + offsets(t, columns, column), state, mask=inside)


@triton.jit(do_not_specialize=_GENERAL, do_not_specialize_on_alignment=_GENERAL)
def backward(
    a, initial, outputs, grad_outputs, products, totals, grad_a, grad_b, grad_initial,
    steps: tl.int32, columns: tl.int64, length: tl.int32, chunks: tl.int32, scale: tl.float32,
    is_chunked: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the steps of one chunk, and that of the initial state.

    dL/db_t = dL/dh_t + scale * a_{t+1} * dL/db_{t+1}, and dL/da_t = h_{t-1} * dL/db_t.
    """
    column = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    chunk = tl.program_id(1)
    start = chunk * length
    stop = tl.minimum(start + length, steps)
    before_all = tl.load(initial + column, mask=column < columns, other=0.0)
    # The gradient that passes from step t + 1 to step t.
    passed = tl.full((block,), 0.0, tl.float32)
    if is_chunked:
        later_chunks = chunks - 1 - chunk
        passed = apply_chunks(
            passed, products, totals, chunks - 1, later_chunks, columns, column, -1
        )
    for done in range(0, stop - start, AHEAD):
        last = stop - 1 - done
        some_a = load_steps(a, last, start, stop, columns, column, -1)
        some_grads = load_steps(grad_outputs, last, start, stop, columns, column, -1)
        # h_{t-1} is in the previous row, which for the first step is in another chunk.
        some_before = load_steps(outputs, last - 1, 0, stop, columns, column, -1)
        for k in tl.static_range(AHEAD):
            t = last - k
            grad = some_grads[k] + passed
            before = tl.where(t > 0, some_before[k], before_all)
            inside = (column < columns) & (t >= start)
            place = offsets(t, columns, column)
            tl.store(grad_b + place, grad, mask=inside)
            tl.store(grad_a + place, before * grad, mask=inside)
            passed = tl.where(t >= start, scale * some_a[k] * grad, passed)
    tl.store(grad_initial + column, passed, mask=(column < columns) & (chunk == 0))
