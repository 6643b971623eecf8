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
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from recurra.errors import KernelError
from recurra.kernels import builder

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_in_forked_child = False


class Description(ctypes.Structure):
    """What a kernel is handed. Mirrors a structure of `source/kernels.h`, field by field."""

    def point(self, **tensors: Tensor | None) -> None:
        """Let these fields point to dense tensors, which live as long as the description."""
        assert all(tensor is None or tensor.is_contiguous() for tensor in tensors.values())
        self.point_strided(**tensors)

    def point_strided(self, **tensors: Tensor | None) -> None:
        """The same for tensors whose strides the description tells."""
        for name, tensor in tensors.items():
            setattr(self, name, None if tensor is None else tensor.data_ptr())
        self._tensors = [*getattr(self, "_tensors", ()), *tensors.values()]


class Layer(Description):
    """One layer through time."""

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


class GradientProduct(Description):
    """One product a' b over many rows."""

    _fields_ = (
        ("kind", c_int32),
        ("threads", c_int32),
        ("rows", c_int64),
        ("m", c_int64),
        ("n", c_int64),
        ("lda", c_int64),
        ("ldb", c_int64),
        ("ldc", c_int64),
        ("a", c_void_p),
        ("b", c_void_p),
        ("c", c_void_p),
        ("packed", c_void_p),
    )


class DenseProduct(Description):
    """One product of many rows with a weight."""

    _fields_ = (
        ("kind", c_int32),
        ("threads", c_int32),
        ("rows", c_int64),
        ("depth", c_int64),
        ("n", c_int64),
        ("lda", c_int64),
        ("is_operand", c_int32),
        ("reserved", c_int32),
        ("a", c_void_p),
        ("weight", c_void_p),
        ("weight_row", c_int64),
        ("weight_column", c_int64),
        ("bias", c_void_p),
        ("out", c_void_p),
        ("packed", c_void_p),
    )


class OutputLayer(Description):
    """The output layer and its loss."""

    _fields_ = (
        ("kind", c_int32),
        ("threads", c_int32),
        ("rows", c_int64),
        ("units", c_int64),
        ("vocabulary", c_int64),
        ("hidden", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("targets", c_void_p),
        ("loss", c_void_p),
        ("grad_logits", c_void_p),
        ("grad_hidden", c_void_p),
        ("grad_bias", c_void_p),
        ("spare", c_void_p),
        ("packed", c_void_p),
    )


class Update(Description):
    """One update of all parameters."""

    _fields_ = (
        ("rule", c_int32),
        ("threads", c_int32),
        ("count", c_int64),
        ("sizes", POINTER(c_int64)),
        ("parameters", POINTER(c_void_p)),
        ("gradients", POINTER(c_void_p)),
        ("first", POINTER(c_void_p)),
        ("second", POINTER(c_void_p)),
        ("decays", POINTER(c_float)),
        ("factor", c_float),
        ("lr", c_float),
        ("momentum", c_float),
        ("beta2", c_float),
        ("epsilon", c_float),
        ("new_share", c_float),
        ("new_square_share", c_float),
        ("correction", c_float),
        ("root_correction", c_float),
        ("is_first", c_int32),
    )


class Generation(Description):
    """New text."""

    _fields_ = (
        ("threads", c_int32),
        ("num_layers", c_int32),
        ("packs", c_int32),
        ("greedy", c_int32),
        ("layers", POINTER(Layer)),
        ("weights_ih", POINTER(c_void_p)),
        ("biases", POINTER(c_void_p)),
        ("packed_ih", POINTER(c_void_p)),
        ("projected", POINTER(c_void_p)),
        ("embedding", c_void_p),
        ("embedding_size", c_int64),
        ("embedding_operand", c_void_p),
        ("vocabulary", c_int64),
        ("head_weight", c_void_p),
        ("head_bias", c_void_p),
        ("packed_head", c_void_p),
        ("logits", c_void_p),
        ("ids", c_void_p),
        ("uniforms", c_void_p),
        ("seen", c_void_p),
        ("banned", c_void_p),
        ("num_banned", c_int64),
        ("top_k", c_int64),
        ("temperature", c_double),
        ("top_p", c_double),
        ("min_p", c_double),
        ("repetition_penalty", c_double),
    )


class LinearScan(Description):
    """The elementwise recurrence."""

    _fields_ = (
        ("threads", c_int32),
        ("recurrent_scale", c_float),
        ("steps", c_int64),
        ("columns", c_int64),
        ("a", c_void_p),
        ("b", c_void_p),
        ("initial", c_void_p),
        ("outputs", c_void_p),
        ("grad_outputs", c_void_p),
        ("grad_final", c_void_p),
        ("grad_a", c_void_p),
        ("grad_b", c_void_p),
        ("grad_initial", c_void_p),
    )


def is_available() -> bool:
    """Whether the kernels can be used; builds them at the first call, which takes some seconds.

    Says once, in the log, why they cannot.
    """
    with _lock:
        return _try_to_load()


def is_switched_off() -> bool:
    """Whether RECURRA_KERNELS says that they are not to be used."""
    return os.environ.get("RECURRA_KERNELS", "").lower() in ("0", "off", "no", "false")


def describe() -> str:
    """What they were built for.

    Raises:
        KernelError: they cannot be loaded.
    """
    bits = 32 * load().recurra_lanes()
    halves = "products of bf16 pairs" if load().recurra_best_kind() > 1 else "bf16 by rounding"
    return f"built, vectors of {bits} bits, {halves}"


@cache
def _try_to_load() -> bool:
    if is_switched_off():
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
        KernelError: it cannot be built or loaded, or is switched off; a build that failed before
            is not repeated.
    """
    if is_switched_off():
        raise KernelError("the compiled kernels are switched off (RECURRA_KERNELS)")
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
    if builder.find_compiler() is None:
        return builder.build()  # which says so; nothing is begun
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
    described = {
        "layer": (Layer, ("layer_forward", "layer_backward")),
        "gradient_product": (GradientProduct, ("multiply_transposed",)),
        "dense_product": (DenseProduct, ("multiply",)),
        "output_layer": (OutputLayer, ("output_forward", "output_backward")),
        "update": (Update, ("update", "gradient_norm")),
        "generation": (Generation, ("generate",)),
        "linear_scan": (LinearScan, ("scan_forward", "scan_backward")),
    }
    for name, (structure, functions) in described.items():
        size = getattr(library, f"recurra_{name}_bytes")
        size.restype = c_int64
        if size() != ctypes.sizeof(structure):
            raise KernelError("the kernels are of another version")
        for function in functions:
            _sign(library, function, POINTER(structure))
    library.recurra_gradient_norm.restype = c_double
    library.recurra_generate.restype = c_int64
    _sign(library, "add_rows", c_int32, *[c_int64] * 3, c_void_p, c_void_p, c_int32, c_void_p)
    _sign(library, "transpose", c_int32, c_int64, c_int64, *[c_void_p] * 3)
    _sign(library, "mask", c_int32, c_uint64, c_int32, c_float, c_int64, c_void_p)
    _sign(library, "all_below", c_int64, c_void_p, c_int64, result=c_int32)
    _sign(library, "best_kind", result=c_int32)
    _sign(library, "lanes", result=c_int32)
    _sign(library, "packed_numbers", c_int64, c_int64, c_int64, result=c_int64)
    _sign(library, "spare_numbers", c_int64, c_int64, c_int64, result=c_int64)
    _sign(library, "transposed_numbers", c_int64, c_int64, c_int64, result=c_int64)
    _sign(library, "dense_numbers", c_int64, c_int64, c_int64, result=c_int64)
    _sign(library, "logit_numbers", c_int64, result=c_int64)
    _sign(library, "output_spare_numbers", c_int64, c_int64, result=c_int64)
    _sign(library, "output_numbers", c_int64, c_int64, c_int64, result=c_int64)
    return library


def _sign(library: Any, name: str, *arguments: Any, result: Any = None) -> None:
    function = getattr(library, f"recurra_{name}")
    function.argtypes, function.restype = arguments, result


def threads() -> int:
    """How many threads a kernel takes: torch's number, and one in a forked process.

    A process that was forked from one with OpenMP threads has none of them, but believes it has.
    """
    return 1 if _in_forked_child else torch.get_num_threads()


def pointer(tensor: Tensor | None) -> int | None:
    """Where a dense tensor's numbers begin; somebody must keep the tensor meanwhile."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _note_fork() -> None:
    global _in_forked_child
    _in_forked_child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
