"""Read the cores, NUMA nodes and affinity mask of a process on Windows."""

from __future__ import annotations

import ctypes
import struct
import sys
from ctypes import POINTER, byref, c_int, c_size_t, c_uint16, c_uint32, c_void_p
from dataclasses import dataclass
from typing import Any

_CORE, _NODE, _ALL = 0, 1, 0xFFFF
"""Values of LOGICAL_PROCESSOR_RELATIONSHIP."""
_HEAD, _GROUPS, _GROUP = struct.Struct("<LL"), struct.Struct("<22xH"), struct.Struct("<QH6x")
"""The start of SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX, the end of the fields before the masks of a
core or node, and GROUP_AFFINITY, on 64-bit Windows."""
_GROUP_SIZE = 64
"""Windows numbers logical CPUs within groups of at most 64."""


@dataclass(frozen=True)
class WindowsProcessors:
    """Sets of logical CPUs; the number of a CPU is that of its group times 64 plus its own.

    Attributes:
        allowed: the affinity mask of the process.
        cores: the CPUs of each core.
        nodes: the CPUs of each NUMA node.
        slow: the CPUs of the cores that are not of the highest efficiency class.
    """

    allowed: frozenset[int]
    cores: tuple[frozenset[int], ...]
    nodes: tuple[frozenset[int], ...]
    slow: frozenset[int]


def detect(kernel32: Any = None) -> WindowsProcessors | None:
    """Return the logical CPUs of this process, or None if Windows does not state them.

    Args:
        kernel32: the system library; by default, that of this system.
    """
    if kernel32 is None and sys.platform == "win32":
        kernel32 = ctypes.WinDLL("kernel32")
    records = _records(kernel32)
    cores = [(body[1], _cpus(body)) for kind, body in records if kind == _CORE]
    if not cores:
        return None
    fastest = max(efficiency for efficiency, _ in cores)
    slow = [cpus for efficiency, cpus in cores if efficiency < fastest]
    every = frozenset[int]().union(*(cpus for _, cpus in cores))
    mask = _affinity_mask(kernel32)
    return WindowsProcessors(
        allowed=every if mask is None else every & mask or every,
        cores=tuple(cpus for _, cpus in cores),
        nodes=tuple(_cpus(body) for kind, body in records if kind == _NODE),
        slow=frozenset[int]().union(*slow),
    )


def _records(kernel32: Any) -> list[tuple[int, bytes]]:
    """Return the kind and the contents of each record about the processors; none after an error."""
    call, size = kernel32.GetLogicalProcessorInformationEx, c_uint32(0)
    call.argtypes, call.restype = (c_int, c_void_p, POINTER(c_uint32)), c_int
    call(_ALL, None, byref(size))  # This call fails and sets the size.
    buffer = ctypes.create_string_buffer(size.value)
    if size.value == 0 or not call(_ALL, buffer, byref(size)):
        return []
    data, start, found = buffer.raw[: size.value], 0, []
    while start + _HEAD.size <= len(data):
        kind, length = _HEAD.unpack_from(data, start)
        if length < _HEAD.size:
            break
        found.append((kind, data[start + _HEAD.size : start + length]))
        start += length
    return found


def _cpus(body: bytes) -> frozenset[int]:
    """Return the logical CPUs of a core or a node."""
    # Before Windows Server 2022, the number of masks of a node is 0, and there is one.
    count = max(_GROUPS.unpack_from(body)[0], 1)
    masks = [_GROUP.unpack_from(body, _GROUPS.size + i * _GROUP.size) for i in range(count)]
    return frozenset[int]().union(*(_numbers(mask, group) for mask, group in masks))


def _numbers(mask: int, group: int) -> set[int]:
    return {group * _GROUP_SIZE + bit for bit in range(_GROUP_SIZE) if mask >> bit & 1}


def _affinity_mask(kernel32: Any) -> frozenset[int] | None:
    """Return the affinity mask; None if it is unknown or the process uses several groups."""
    kernel32.GetCurrentProcess.restype = c_void_p
    process = c_void_p(kernel32.GetCurrentProcess())
    count, group = c_uint16(1), c_uint16(0)
    call = kernel32.GetProcessGroupAffinity
    call.argtypes, call.restype = (c_void_p, POINTER(c_uint16), POINTER(c_uint16)), c_int
    if not call(process, byref(count), byref(group)):  # Fails if there are several groups.
        return None
    mask, system = c_size_t(0), c_size_t(0)
    call = kernel32.GetProcessAffinityMask
    call.argtypes, call.restype = (c_void_p, POINTER(c_size_t), POINTER(c_size_t)), c_int
    if not call(process, byref(mask), byref(system)):
        return None
    return frozenset(_numbers(mask.value, group.value))
