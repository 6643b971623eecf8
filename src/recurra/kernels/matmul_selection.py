"""Select the matrix-product kernel for bf16 by measurement, when the kernels are first used.

Each kernel that the build and the machine have is compared with torch on small problems, and a
kernel with wrong results is never used. The fastest correct one, with the number of threads of that
first use, computes the products in bf16. If the times are reliable, the result is stored in the
cache directory, so later runs with the same build use the same kernel until it is measured again,
the cache is removed, or RECURRA_MATMUL is set. A checkpoint of a bf16 run records the kernel.
"""

from __future__ import annotations

import logging
import os
import threading
from functools import cache

import torch

from recurra.errors import KernelError
from recurra.kernels import library, matmul_results, selection
from recurra.kernels.matmul_results import KERNELS, MatmulMeasurements
from recurra.kernels.matmul_trials import LayerSize, is_correct, layer_times
from recurra.kernels.products import SINGLE

DESCRIPTIONS = {
    "single": "fp32",
    "rounded": "fp32 instructions on bf16-rounded operands",
    "pairs": "bf16 dot-product instructions",
    "tiles": "AMX tiles",
}
"""What each kernel of `KERNELS` uses."""
_SIZES = (("lstm", 256, 16), ("lstm", 512, 32))
"""Cell, units and rows at which the kernels are compared."""

_logger = logging.getLogger(__name__)
_lock = threading.Lock()


def describe(found: MatmulMeasurements) -> str:
    """Return the selected kernel and the speed of each kernel at the largest size."""
    size, speeds = list(found.gflops.items())[-1]
    listed = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    wrong = "".join(f"; {name}: wrong results, not used" for name in found.wrong)
    return f"{found.bf16} ({DESCRIPTIONS[found.bf16]}); GFLOP/s of {size}: {listed}{wrong}"


def matmul_kernel(dtype: torch.dtype) -> int:
    """Return the number of the matrix-product kernel for operands of a dtype, see `KERNELS`.

    Raises:
        KernelError: as for `matmul_kernels`; for fp32, RECURRA_MATMUL is ignored.
        ConfigError: as for `matmul_kernels`.
    """
    if dtype == torch.float32:
        _locked_measurements()
        return SINGLE
    return KERNELS[matmul_kernels().bf16]


def matmul_kernels() -> MatmulMeasurements:
    """Return the matrix-product kernel for bf16 and the measured speeds.

    If no result is stored for this build, the kernels are measured first.

    The environment variable RECURRA_MATMUL selects a kernel for bf16 (rounded, pairs or tiles)
    instead of the fastest one.

    Raises:
        KernelError: the kernels cannot be loaded, their fp32 products are wrong, or the kernel of
            RECURRA_MATMUL is unknown or not available.
        ConfigError: RECURRA_KERNELS names a variant that does not exist or that this machine cannot
            execute.
    """
    found = _locked_measurements()
    requested = os.environ.get("RECURRA_MATMUL", "").strip().lower()
    if requested in selection.AUTOMATIC:
        return found
    choices = [name for name in KERNELS if name not in ("single", *found.wrong) and _has(name)]
    if requested not in choices:
        raise KernelError(
            f"RECURRA_MATMUL is {requested!r}, but the choices on this machine are auto,"
            f" {', '.join(choices)}"
        )
    return MatmulMeasurements(requested, found.wrong, found.gflops, found.speedups)


def measure_again() -> MatmulMeasurements:
    """Measure the kernels again, replace the stored measurements, and return the new ones.

    The speedups of single layers are removed as well. RECURRA_MATMUL has no effect on the result.

    Raises:
        KernelError: as for `matmul_kernels`, or the measurement is not reliable (see `LayerTimes`):
            the stored one remains.
        ConfigError: as for `matmul_kernels`.
    """
    library.load()
    with _lock, matmul_results.locked():
        found, is_reliable = _measure()
        if not is_reliable:
            raise KernelError(
                "the times of the matrix-product kernels varied too much, perhaps because of other"
                " programs; the stored result is unchanged; repeat the measurement when the machine"
                " is idle"
            )
        matmul_results.write(found)
        _load_or_measure.cache_clear()
    return found


def bf16_speedup(cell: str, units: int, rows: int) -> float:
    """Return the speed of a layer in bf16 relative to fp32, with the current number of threads.

    The first call for a size measures it. This takes about 40 ms, up to about a second beside other
    programs, and longer for very large layers. The result is stored if it is reliable, see
    `LayerTimes`; otherwise it is used in this process only.

    Args:
        cell: the name of a cell that has compiled kernels.
        units: hidden size.
        rows: batch size.

    Raises:
        KernelError: as for `matmul_kernels`.
        ConfigError: as for `matmul_kernels`.
    """
    size, found = LayerSize(cell, units, rows, library.threads()), matmul_kernels()
    key = f"{size}, {found.bf16}"
    with _lock:
        if key not in found.speedups:
            found.speedups[key] = _stored_speedup(key) or _measure_speedup(size, key, found.bf16)
        return found.speedups[key]


def _stored_speedup(key: str) -> float | None:
    # Another process may have measured it since this one read the file.
    stored = matmul_results.read()
    return stored.speedups.get(key) if stored else None


def _measure_speedup(size: LayerSize, key: str, bf16: str) -> float:
    with matmul_results.locked():
        if (known := _stored_speedup(key)) is not None:
            return known
        times = layer_times(size, (SINGLE, KERNELS[bf16]))
        single, half = times.seconds
        speedup = round(single / half, 3)
        stored = matmul_results.read()
        if stored is not None and times.is_reliable:
            stored.speedups[key] = speedup
            matmul_results.write(stored)
    return speedup


def _locked_measurements() -> MatmulMeasurements:
    with _lock:
        return _load_or_measure()


@cache
def _load_or_measure() -> MatmulMeasurements:
    """Return the stored result, or measure and store it."""
    library.load()
    if (found := _read()) is not None:
        return found
    with matmul_results.locked():
        if (found := _read()) is not None:
            return found
        found, is_reliable = _measure()
        if is_reliable:
            matmul_results.write(found)
        else:
            _logger.info(
                "the times of the matrix-product kernels varied too much, perhaps because of other"
                " programs; the result is not stored, and the next process measures again"
            )
    return found


def _read() -> MatmulMeasurements | None:
    found = matmul_results.read()
    return found if found is not None and _has(found.bf16) else None


def _has(name: str) -> bool:
    return bool(library.load().recurra_has_kind(KERNELS[name]))


def _measure() -> tuple[MatmulMeasurements, bool]:
    """Measure all kernels; return the result and whether it is reliable."""
    available = [name for name in KERNELS if _has(name)]
    wrong = [name for name in available if not is_correct(KERNELS[name])]
    if "single" in wrong or "rounded" in wrong:
        raise KernelError(
            "the matrix products of the built kernels are wrong on this machine; set"
            " RECURRA_KERNELS=off to do without the kernels"
        )
    for name in wrong:
        _logger.warning(
            "the matrix-product kernel %s (%s) gives wrong results on this machine and is not used",
            name,
            DESCRIPTIONS[name],
        )
    names = [name for name in available if name not in wrong]
    gflops, is_reliable = {}, True
    for cell, units, rows in _SIZES:
        size = LayerSize(cell, units, rows, library.threads())
        times = layer_times(size, [KERNELS[name] for name in names])
        is_reliable &= times.is_reliable
        gflops[str(size)] = {
            name: round(size.flops / seconds / 1e9, 1)
            for name, seconds in zip(names, times.seconds, strict=True)
        }
    # Select the kernel with the least time relative to fp32, summed over the sizes.
    time_of = {
        name: sum(speeds["single"] / speeds[name] for speeds in gflops.values())
        for name in names
        if name != "single"
    }
    return MatmulMeasurements(min(time_of, key=time_of.__getitem__), wrong, gflops), is_reliable
