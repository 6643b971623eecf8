"""Load the compiled kernels, building them first if necessary, and declare their functions.

`selection.py` chooses the library. `structures.py` has the structures that the functions receive.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
import time
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from recurra.errors import KernelError
from recurra.kernels import builder, selection, structures
from recurra.runtime import affinity, cores, openmp

_logger = logging.getLogger(__name__)
_lock = threading.Lock()


def is_available() -> bool:
    """Return whether the kernels can be used; the first call builds them.

    If they cannot be used, the reason is logged once.
    """
    return unavailable() is None


def unavailable() -> str | None:
    """Return why the kernels cannot be used, or None if they can; see `is_available`."""
    with _lock:
        return _loading_error()


def reason_unavailable() -> str | None:
    """Return why the kernels cannot be used, as far as is known without building them, or None.

    Training and `recurra doctor` decide by this function.

    Raises:
        ConfigError: RECURRA_KERNELS names a variant that this machine does not have.
    """
    try:
        selected = selection.select()
        if selected.path is not None:
            return None
        if (log := builder.failed_log(selected.variant)) is not None:
            return (
                f"the kernels could not be built before (see {log}; recurra kernels build tries"
                " again)"
            )
    except KernelError as error:
        return str(error)
    return builder.reason_not_buildable(selected.variant)


def describe() -> str:
    """Return the variant of the kernels, its origin and its vector width.

    Raises:
        KernelError: the kernels cannot be loaded.
    """
    selected = selection.select()
    bits = 32 * load().recurra_lanes()
    return f"{selected.variant}, {selected.origin}, vectors of {bits} bits"


@cache
def _loading_error() -> str | None:
    try:
        load()
    except KernelError as error:
        if not selection.is_switched_off():
            _logger.warning("%s; continuing without compiled kernels, which is slower", error)
        return str(error)
    return None


@cache
def load() -> Any:
    """Load the library, building it if necessary.

    Raises:
        KernelError: it cannot be built or loaded, or is switched off; a build that failed before
            is not repeated.
        ConfigError: RECURRA_KERNELS names a variant that this machine does not have.
    """
    if (reason := reason_unavailable()) is not None:
        raise KernelError(reason)
    selected = selection.select()
    path = selected.path or _build(selected.variant)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"cannot load the kernels: {error}") from error
    _declare(library)
    if sys.platform == "linux" and (bound := sorted(affinity.bound_processors())):
        library.recurra_add_processors(len(bound), (c_int32 * len(bound))(*bound))
    return library


def _build(variant: str) -> Path:
    _logger.info("building the CPU kernels, once for this machine (10 to 60 s)")
    start = time.monotonic()
    path = builder.build(variant)
    _logger.info("built the CPU kernels in %.0f s", time.monotonic() - start)
    return path


def _declare(library: Any) -> None:
    described = {
        "layer": (structures.Layer, ("layer_forward", "layer_backward")),
        "gradient_product": (structures.GradientProduct, ("multiply_transposed",)),
        "dense_product": (structures.DenseProduct, ("multiply",)),
        "output_layer": (
            structures.OutputLayer,
            ("output_forward", "output_backward", "output_in_blocks"),
        ),
        "update": (structures.Update, ("update", "gradient_norm")),
        "generation": (structures.Generation, ("generate",)),
        "linear_scan": (structures.LinearScan, ("scan_forward", "scan_backward")),
    }
    for name, (structure, functions) in described.items():
        size = getattr(library, f"recurra_{name}_bytes")
        size.restype = c_int64
        if size() != ctypes.sizeof(structure):
            raise KernelError("the built kernels do not match; run recurra kernels clean")
        for function in functions:
            _sign(library, function, POINTER(structure))
    library.recurra_gradient_norm.restype = c_double
    library.recurra_generate.restype = c_int64
    _sign(library, "cell_layout", c_int32, POINTER(structures.CellLayout))
    add_rows = [c_int32, *[c_int64] * 3, c_void_p, c_void_p, c_int32, c_int64, c_void_p]
    _sign(library, "add_rows", *add_rows)
    _sign(library, "transpose", c_int32, c_int64, c_int64, *[c_void_p] * 3)
    _sign(library, "mask", c_int32, c_uint64, c_int32, c_float, c_int64, c_void_p)
    _sign(library, "apply_mask", c_int32, c_int64, c_int64, *[c_void_p] * 3)
    _sign(library, "all_below", c_int64, c_void_p, c_int64, result=c_int32)
    _sign(library, "has_kind", c_int32, result=c_int32)
    _sign(library, "divide", c_int32, *[c_int64] * 3, c_int32, *[c_int64] * 2, POINTER(c_int32))
    _sign(library, "cache_bytes", c_int32, result=c_int64)
    _sign(library, "limit_threads", c_int32)
    _sign(library, "lanes", result=c_int32)
    _sign(library, "packed_numbers", c_int64, c_int64, c_int64, result=c_int64)
    _sign(library, "spare_numbers", c_int64, c_int64, c_int64, result=c_int64)
    _sign(library, "transposed_numbers", c_int64, c_int64, c_int64, result=c_int64)
    _sign(library, "dense_numbers", c_int64, c_int64, c_int64, result=c_int64)
    _sign(library, "logit_numbers", c_int64, result=c_int64)
    _sign(library, "output_spare_numbers", c_int64, c_int64, result=c_int64)
    _sign(library, "output_numbers", c_int64, c_int64, c_int64, result=c_int64)
    _sign(library, "block_spare_numbers", *[c_int64] * 4, c_int32, result=c_int64)
    _sign(library, "block_numbers", *[c_int64] * 4, result=c_int64)
    _sign(library, "add_processors", c_int32, POINTER(c_int32))


def _sign(library: Any, name: str, *arguments: Any, result: Any = None) -> None:
    function = getattr(library, f"recurra_{name}")
    function.argtypes, function.restype = arguments, result


@cache
def cell_layout(name: str) -> structures.Description:
    """Return the sizes that the kernels declare for a cell, see `CellLayout`.

    Raises:
        KernelError: the kernels cannot be loaded.
    """
    layout = structures.CellLayout()
    load().recurra_cell_layout(structures.COMPILED_CELLS[name], ctypes.byref(layout))
    return layout


def threads() -> int:
    """Return the number of threads of the kernel that is called next, see `cores.threads`."""
    count = cores.threads()
    if count > 1:
        openmp.kernels_called()
    return count


def pointer(tensor: Tensor | None) -> int | None:
    """Return the data pointer of a contiguous tensor, which the caller must keep alive."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()
