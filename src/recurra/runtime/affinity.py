"""The logical CPUs that this process may use on Linux."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch


def allowed_processors() -> set[int]:
    """Return the logical CPUs that this process may use, on Linux.

    These are the affinity masks of the first thread and of the calling thread, because either can
    be confined to fewer, and the CPUs to which OpenMP has bound threads.
    """
    return os.sched_getaffinity(os.getpid()) | os.sched_getaffinity(0) | bound_processors()


@cache
def bound_processors() -> frozenset[int]:
    """Return the CPUs to which torch's OpenMP runtime binds threads, or none if it does not.

    With OMP_PROC_BIND or GOMP_CPU_AFFINITY, the runtime confines the thread that loads it to one
    CPU. Without them, it states no places.
    """
    library = torch_library()
    try:
        count = library.omp_get_num_places()
        if not library.omp_get_proc_bind():
            return frozenset()
        return frozenset(cpu for place in range(count) for cpu in _place(library, place))
    except AttributeError:  # torch without OpenMP
        return frozenset()


def torch_library() -> Any:
    """Return torch's library, in which the functions of its OpenMP runtime are found as well.

    None if it cannot be loaded, as on other systems than Linux.
    """
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _place(library: Any, place: int) -> list[int]:
    ids = (ctypes.c_int * library.omp_get_place_num_procs(place))()
    library.omp_get_place_proc_ids(place, ids)
    return list(ids)
