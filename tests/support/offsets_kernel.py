"""A kernel that writes `scan_kernels.offsets`; it is defined for the interpreter if that is on."""

from __future__ import annotations

import triton
import triton.language as tl

from recurra.recurrence.backends.scan_kernels import offsets


@triton.jit
def write_offsets(found, t: tl.int32, columns, column):
    tl.store(found, offsets(t, columns, column))
