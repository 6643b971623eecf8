"""Detect the processor cores that this process may use: hyper-threads, NUMA nodes, CPU quota."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from pathlib import Path

from recurra.runtime import affinity, windows_processors
from recurra.runtime.cgroups import cpu_quota

_CPUS = "sys/devices/system/cpu"
_MAX_CPU = 2**16
"""Numbers of logical CPUs above this are errors of the file; Linux supports 8,192."""


@dataclass(frozen=True)
class Processors:
    """The processor cores that a process may use.

    Attributes:
        machine: number of logical CPUs of the machine.
        allowed: number of logical CPUs in the affinity mask of the process.
        cores: number of cores to which the logical CPUs of the mask belong, without slower cores.
        slower: number of slower cores that are left out (efficiency cores).
        nodes: number of these cores in each NUMA node that has any, the largest number first.
        quota: CPU time of the process in CPUs, or None if it is not limited.
    """

    machine: int
    allowed: int
    cores: int
    slower: int = 0
    nodes: tuple[int, ...] = ()
    quota: float | None = None


def detect() -> Processors:
    """Return the cores that this process may use.

    Without a source of information on this system, every logical CPU counts as a core.
    """
    if sys.platform == "darwin":
        return mac_processors(_sysctl)
    if sys.platform == "win32" and (cpus := windows_processors.detect()) is not None:
        return count_cores(cpus.allowed, cpus.cores, cpus.nodes, cpus.slow)
    allowed = set(range(os.cpu_count() or 1))
    if sys.platform == "linux":
        allowed = affinity.allowed_processors()
    return linux_processors(allowed)


def detect_launcher() -> Processors | None:
    """Return the cores that the parent of this process may use, or None if they are unknown."""
    if sys.platform != "linux":
        return None
    try:
        return linux_processors(os.sched_getaffinity(os.getppid()))
    except OSError:  # The parent has ended.
        return None


def count_cores(
    allowed: Set[int],
    cores: Iterable[Set[int]],
    nodes: Iterable[Set[int]],
    slow: Set[int] = frozenset(),
    machine: int | None = None,
) -> Processors:
    """Count the cores of a mask.

    Args:
        allowed: logical CPUs of the affinity mask.
        cores: logical CPUs of each core.
        nodes: logical CPUs of each NUMA node. Equal ones count once: some systems emulate nodes of
            memory that have all CPUs in common.
        slow: logical CPUs of the slower cores, which count only if the mask has no others.
        machine: number of logical CPUs of the machine; by default, all that belong to a core.
    """
    cores = set(map(frozenset, cores))
    usable = {min(core & allowed) for core in cores if core & allowed}
    fast = usable - slow or usable
    shares = [len(fast & node) for node in set(map(frozenset, nodes))]
    return Processors(
        machine=len(frozenset().union(*cores)) if machine is None else machine,
        allowed=len(allowed),
        cores=len(fast),
        slower=len(usable) - len(fast),
        nodes=tuple(sorted(filter(None, shares), reverse=True)) or (len(fast),),
    )


def linux_processors(allowed: Set[int], root: Path = Path("/")) -> Processors:
    """Return the cores of an affinity mask, and the CPU quota of this process.

    Args:
        allowed: logical CPUs of the affinity mask.
        root: the directory that contains `proc` and `sys`. What is missing there or cannot be read
            does not limit the number.
    """
    online = _cpu_list(root / _CPUS / "online")
    # The topology of CPUs that are offline is unknown.
    allowed = frozenset(allowed) & online or frozenset(allowed)
    nodes = [_cpu_list(file) for file in root.glob("sys/devices/system/node/node*/cpulist")]
    counts = count_cores(
        allowed,
        [_core(root, cpu) for cpu in allowed],
        nodes,
        _slow_cpus(root, allowed),
        machine=len(online | allowed),
    )
    return Processors(**{**vars(counts), "quota": cpu_quota(root)})


def _core(root: Path, cpu: int) -> frozenset[int]:
    """Return the logical CPUs of the core that has this one."""
    for name in ("core_cpus_list", "thread_siblings_list"):  # The second is that of Linux < 5.2.
        core = _cpu_list(root / _CPUS / f"cpu{cpu}/topology" / name)
        if cpu in core:
            return core
    return frozenset([cpu])


def _slow_cpus(root: Path, allowed: Set[int]) -> frozenset[int]:
    """Return the logical CPUs of slower cores.

    The threads of a kernel have equal parts of the work and wait for each other, so the speed of n
    cores is n times that of the slowest. Where Linux reports the capacity of each logical CPU, the
    CPUs are sorted by capacity, and the n fastest are kept for which this speed is highest. For
    Intel's processors it reports no capacity, but lists the efficiency cores, whose vector units
    have half the width. These are left out.
    """
    if atoms := _cpu_list(root / "sys/devices/cpu_atom/cpus"):
        return atoms
    capacity = {cpu: _number(root / _CPUS / f"cpu{cpu}/cpu_capacity") for cpu in allowed}
    order = sorted(allowed, key=lambda cpu: -capacity[cpu])
    if not order or min(capacity.values()) <= 0:
        return frozenset()
    best = max(range(len(order)), key=lambda last: (last + 1) * capacity[order[last]])
    return frozenset(cpu for cpu in order if capacity[cpu] < capacity[order[best]])


def mac_processors(read: Callable[[str], int | None]) -> Processors:
    """Return the performance cores of a Mac, which has no affinity masks and no CPU quotas.

    Args:
        read: returns the number of this name in `sysctl -a`, or None if there is none.
    """
    logical = read("hw.logicalcpu") or os.cpu_count() or 1
    physical = read("hw.physicalcpu") or logical
    cores = read("hw.perflevel0.physicalcpu") or physical
    return Processors(logical, logical, cores, max(physical - cores, 0), (cores,))


def _sysctl(name: str) -> int | None:
    value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    call = ctypes.CDLL(None).sysctlbyname
    failed = call(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else value.value


def _cpu_list(file: Path) -> frozenset[int]:
    """Return the values of a list such as `0-3,8`; empty if the file is missing or invalid."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return frozenset()
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        return frozenset()
    ranges = [[int(bound) for bound in part.split("-")] for part in text.split(",")]
    if max(map(max, ranges)) > _MAX_CPU:
        return frozenset()
    return frozenset(cpu for bounds in ranges for cpu in range(bounds[0], bounds[-1] + 1))


def _number(file: Path) -> int:
    """Return the number in a file; 0 if the file is missing or invalid."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
