"""The door to the compiled kernels: loads them, building them first where need be, and calls them.

Structures and signatures mirror those of `source/*.h`; the library says how large it believes its
structures to be, and is not used where that differs.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
import time
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from recurra.errors import KernelError
from recurra.kernels import builder

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_in_forked_child = False


class Layer(ctypes.Structure):
    """One layer through time; see `source/layer.h`, which has the same fields in the same order."""

    _fields_ = (
        ("cell", c_int32),
        ("kind", c_int32),
        ("threads", c_int32),
        ("saves", c_int32),
        ("steps", c_int64),
        ("batch", c_int64),
        ("units", c_int64),
        ("recurrent_scale", c_float),
        ("reserved", c_int32),
        ("weight_hh", c_void_p),
        ("bias_hn", c_void_p),
        ("ids", c_void_p),
        ("projected", c_void_p),
        ("hidden", c_void_p),
        ("hidden_operand", c_void_p),
        ("cells", c_void_p),
        ("saved", c_void_p),
        ("grad_outputs", c_void_p),
        ("grad_hidden", c_void_p),
        ("grad_cells", c_void_p),
        ("deltas", c_void_p),
        ("delta_operand", c_void_p),
        ("grad_bias", c_void_p),
        ("grad_initial", c_void_p),
        ("grad_initial_cells", c_void_p),
        ("packed", c_void_p),
        ("spare", c_void_p),
    )


def is_available() -> bool:
    """Whether the kernels can be used; builds them at the first call, which takes some seconds.

    Says once, in the log, why they cannot.
    """
    with _lock:
        return _try_to_load()


@cache
def _try_to_load() -> bool:
    if os.environ.get("RECURRA_KERNELS", "").lower() in ("0", "off"):
        return False
    try:
        load()
    except KernelError as error:
        _logger.warning("%s; going on without compiled kernels, which is slower", error)
        return False
    return True


@cache
def load() -> Any:
    """The library.

    Raises:
        KernelError: it cannot be built or loaded; a build that failed before is not repeated.
    """
    path = builder.built_library()
    if path is None:
        if (log := builder.failed_log()) is not None:
            raise KernelError(
                f"the kernels could not be built before (see {log}; recurra kernels build tries"
                " again)"
            )
        path = _build()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"cannot load the kernels: {error}") from error
    return _declare(library)


def _build() -> Any:
    print(
        "building the CPU kernels, once for this machine ...", end="", file=sys.stderr, flush=True
    )
    start = time.monotonic()
    try:
        path = builder.build()
    except KernelError:
        print(" failed", file=sys.stderr)
        raise
    print(f" done in {time.monotonic() - start:.0f} s", file=sys.stderr)
    return path


def _declare(library: Any) -> Any:
    for name in ("recurra_layer_forward", "recurra_layer_backward"):
        function = getattr(library, name)
        function.argtypes, function.restype = (POINTER(Layer),), None
    sizes = {
        "recurra_packed_numbers": (c_int64, c_int64),
        "recurra_spare_numbers": (c_int64, c_int64, c_int64),
    }
    for name, arguments in sizes.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int64
    library.recurra_best_kind.restype = c_int32
    library.recurra_add_rows.argtypes = (c_int32, c_int64, c_int64, c_int64, *[c_void_p] * 3)
    library.recurra_add_rows.restype = None
    library.recurra_layer_bytes.restype = c_int64
    if library.recurra_layer_bytes() != ctypes.sizeof(Layer):
        raise KernelError("the kernels are of another version")
    return library


def threads() -> int:
    """How many threads a kernel takes: torch's number, and one in a forked process.

    A process that was forked from one with OpenMP threads has none of them, but believes it has.
    """
    return 1 if _in_forked_child else torch.get_num_threads()


def pointer(tensor: Tensor | None) -> int | None:
    """Where a dense tensor's numbers begin."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _note_fork() -> None:
    global _in_forked_child
    _in_forked_child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
