"""Run the kernels on small random problems, to check and to time each matrix-product kernel.

The time of a layer is that of its forward and backward pass, which contain the recurrent products.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recurra.kernels import library, structures
from recurra.kernels.buffers import NewBuffers
from recurra.kernels.products import SINGLE, dense_product, gradient_product, take_operand
from recurra.kernels.recorder import at_once
from recurra.runtime import openmp

_STEPS = 8
_SECONDS, _MAX_SECONDS = 0.04, 1.0
"""Seconds for the repetitions of one size, and their maximum if the times are not reliable."""
_MIN_REPETITIONS, _MAX_REPETITIONS = 3, 2000
_NUM_SHORTEST, _MAX_RATIO = 3, 1.05
"""The shortest time is reliable if the `_NUM_SHORTEST` shortest ones are at most `_MAX_RATIO` times
as long: without other programs, most repetitions take nearly the same time."""
_MAX_WAITING = 0.03
"""Fraction of the time that the calling thread may wait for a processor. It hardly waits unless
other programs use the processors."""
_TOLERANCE = 1e-4
"""Largest allowed error of a product, relative to its largest entry. Rounding causes 1e-6."""
_PRODUCT_SIZES = (
    *((1, 32, 32), (2, 47, 33), (3, 64, 64), (5, 33, 40)),
    *((6, 40, 31), (16, 64, 32), (23, 70, 65), (36, 101, 96)),
)
"""(rows of each thread, depth, columns) of the products: each number of rows in a tile of 4 and of
8 rows, odd depths and incomplete panels."""


@dataclass(frozen=True)
class LayerSize:
    """The size of a layer whose matrix products are measured.

    Attributes:
        cell: a compiled cell.
        units: hidden size.
        rows: batch size.
        threads: number of threads.
    """

    cell: str
    units: int
    rows: int
    threads: int

    def __str__(self) -> str:
        """Return the key under which a measurement is stored."""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.cell} {self.units}, {self.rows} rows, {threads}"

    @property
    def flops(self) -> int:
        """Floating-point operations of the recurrent products of both passes."""
        gates: int = library.cell_layout(self.cell).gates
        return 4 * _STEPS * self.rows * gates * self.units**2


def is_correct(kind: int, sizes: Sequence[tuple[int, int, int]] | None = None) -> bool:
    """Return whether the products of a kernel equal those of torch on the rounded operands.

    Args:
        kind: the number of the kernel.
        sizes: (rows, depth, columns) of each product; by default `_PRODUCT_SIZES`.
    """
    if sizes is None:
        # A product divides its rows equally among the threads.
        threads = library.threads()
        sizes = [(rows * threads, depth, columns) for rows, depth, columns in _PRODUCT_SIZES]
    generator = torch.Generator().manual_seed(0)
    return all(_multiplies(kind, *size, generator) for size in sizes)


def _multiplies(kind: int, rows: int, depth: int, width: int, generator: torch.Generator) -> bool:
    left = torch.randn(rows, depth, generator=generator)
    right = torch.randn(depth, width, generator=generator)
    other = torch.randn(rows, width, generator=generator)
    bias = torch.randn(width, generator=generator)
    buffers, out, grad = NewBuffers(), torch.empty(rows, width), torch.empty(depth, width)
    dense_product(kind, left, right, out, buffers, at_once, bias)
    operand = left if kind == SINGLE else _rounded(left)
    halves = take_operand(buffers, kind, "operand", rows, depth + depth % 2, like=left).zero_()
    halves[:, :depth] = operand
    gradient_product(kind, halves[:, :depth], other, grad, buffers, at_once)
    if kind != SINGLE:
        left, right, other = map(_rounded, (left, right, other))
    return _is_close(out, left @ right + bias) and _is_close(grad, left.t() @ other)


def _rounded(matrix: Tensor) -> Tensor:
    return matrix.bfloat16().float()


def _is_close(found: Tensor, expected: Tensor) -> bool:
    # A NaN is not close to anything.
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())


class LayerTimes(NamedTuple):
    """Times of both passes of a layer.

    Attributes:
        seconds: the shortest time with each kernel.
        is_reliable: whether several repetitions of each kernel took nearly the shortest time, and
            the calling thread hardly waited for a processor meanwhile (on Linux).
    """

    seconds: list[float]
    is_reliable: bool


def layer_times(size: LayerSize, kinds: Sequence[int]) -> LayerTimes:
    """Time both passes of a layer with each of the given matrix-product kernels.

    The repetitions of the kernels are interleaved, so that other load affects all of them alike.
    They end when `_SECONDS` have passed and the shortest times are reliable, or with the first
    round that ends after `_MAX_SECONDS`.
    """
    trials = [_LayerTrial(size, kind) for kind in kinds]
    for trial in trials:
        trial.run()
    times: list[list[float]] = [[] for _ in trials]
    start, waited_before = time.perf_counter(), _seconds_waited()
    for repetition in range(1, _MAX_REPETITIONS + 1):
        for trial, own in zip(trials, times, strict=True):
            began = time.perf_counter()
            trial.run()
            own.append(time.perf_counter() - began)
        passed = time.perf_counter() - start
        is_enough = repetition >= _MIN_REPETITIONS and passed > _SECONDS
        if passed > _MAX_SECONDS or (is_enough and _are_reliable(times)):
            break
    passed, waited = time.perf_counter() - start, _seconds_waited() - waited_before
    is_reliable = _are_reliable(times) and waited <= _MAX_WAITING * passed
    return LayerTimes([min(own) for own in times], is_reliable)


def _seconds_waited() -> float:
    # Known on Linux only. Elsewhere, the spread of the times has to suffice.
    return openmp.seconds_waited(threading.get_native_id()) or 0.0


def _are_reliable(times: Iterable[list[float]]) -> bool:
    return all(
        len(own) >= _NUM_SHORTEST and sorted(own)[_NUM_SHORTEST - 1] <= _MAX_RATIO * min(own)
        for own in times
    )


class _LayerTrial:
    """The passes of a layer of random weights over a few steps."""

    def __init__(self, size: LayerSize, kind: int) -> None:
        layout, kernels = library.cell_layout(size.cell), library.load()
        units, rows, threads = size.units, size.rows, size.threads
        generator = torch.Generator().manual_seed(0)
        width = layout.deltas * units
        single = kind == SINGLE
        deltas = self._operand(kind, _STEPS * rows, width, units)
        self._layer = structures.Layer(
            cell=structures.COMPILED_CELLS[size.cell],
            kind=kind,
            threads=threads,
            steps=_STEPS,
            batch=rows,
            units=units,
            recurrent_scale=1.0,
        )
        gates, packed = layout.gates * units, kernels.recurra_packed_numbers
        self._layer.point(
            weight_hh=torch.randn(gates, units, generator=generator) / units**0.5,
            projected=torch.randn(_STEPS, rows, gates, generator=generator),
            hidden=torch.zeros(_STEPS + 1, rows, units),
            hidden_operand=None
            if single
            else self._operand(kind, (_STEPS + 1) * rows, units, units),
            cells=torch.zeros(_STEPS + 1, rows, units) if layout.states > 1 else None,
            saved=torch.zeros(_STEPS, rows, layout.saved * units) if layout.saved else None,
            grad_outputs=torch.randn(_STEPS, rows, units, generator=generator),
            grad_hidden=torch.zeros(rows, units),
            grad_cells=torch.zeros(rows, units),
            deltas=deltas if single else None,
            delta_operand=None if single else deltas,
            grad_bias=torch.empty(width),
            grad_initial=torch.empty(rows, units),
            grad_initial_cells=torch.empty(rows, units),
            packed=torch.empty(packed(layout.gates, units, units)),
            spare=torch.empty(kernels.recurra_spare_numbers(threads, rows, units)),
        )

    def run(self) -> None:
        kernels = library.load()
        kernels.recurra_layer_forward(byref(self._layer))
        kernels.recurra_layer_backward(byref(self._layer))

    @staticmethod
    def _operand(kind: int, rows: int, numbers: int, units: int) -> Tensor:
        # With the padding of an odd number of units.
        padded = numbers + 2 * (units % 2)
        return take_operand(NewBuffers(), kind, "", rows, padded, like=torch.empty(0)).zero_()
