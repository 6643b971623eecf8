"""Choose the number of CPU threads of the kernels and of torch, and state the reasons.

By default, it is the smaller of the number of cores that this process may use and torch's number of
threads (which is ignored where torchrun set it to 1). The cores are counted as follows:

- Hyper-threads of one core count once, because they share its vector units and caches. Of cores of
  unequal speed, only the faster ones count: all threads wait for the slowest one.
- Only the cores of one NUMA node count, that with the most. Threads of a recurrent layer meet at
  every time step, which can take a few microseconds, and a message between two processors takes
  longer than one within a processor. A model with a large batch can gain from all nodes. This is
  an argument and not a measurement: no machine with several nodes was available.
- A CPU quota is rounded down. When a process has spent its quota, its threads are suspended one by
  one, and the others wait for them. In one measurement of LSTM layers on two cores, two threads
  were half as fast as one with 64 units and 16 rows. With 32 rows and a quota of 1.5, they were
  11 % faster. With a quota of 1.8, they were 1.8 times as fast with 256 units and equal with 512.
  Rounding down is therefore the cautious choice, and not always the fastest one.
- Processes of torchrun share the cores of the machine equally.

Packages that count cores consider a part of this. os.process_cpu_count knows the affinity mask,
psutil the physical cores of the machine, and joblib's loky the quota, which it rounds up, and
either the mask or the physical cores. None considers NUMA nodes or the processes of torchrun.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch

from recurra.runtime.distributed import local_count, started_rank
from recurra.runtime.processors import Processors, detect, detect_launcher

_logger = logging.getLogger(__name__)
_logged: set[str] = set()


class _Choice(threading.local):
    """The number of threads that `use_threads` sets for the current thread; None outside of it."""

    count: int | None = None


_choice = _Choice()


@dataclass(frozen=True)
class Limit:
    """The maximum number of threads that are used by default, and the facts that it follows from.

    Attributes:
        threads: the maximum.
        processors: the cores that this process may use.
        processes: number of processes of torchrun on this machine.
    """

    threads: int
    processors: Processors
    processes: int = 1


def threads() -> int:
    """Return the number of threads of a kernel that the current thread calls.

    This is the number of the enclosing `use_threads`. Outside of it, it is that of torch, but at
    most the number of cores that this process may use: OMP_NUM_THREADS and `torch.set_num_threads`
    can lower it. The cores are counted once per process and whenever training starts.

    Examples:
        >>> from recurra.runtime.cores import threads, use_threads
        >>> with use_threads(3):
        ...     threads()
        3
    """
    if _choice.count is not None:
        return _choice.count
    limit, count = current_limit(), torch.get_num_threads()
    if count == 1 and limit.processes > 1 and _is_set_by_torchrun():
        return limit.threads
    return min(count, limit.threads)


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let `threads` return this number in the current thread, also if there are fewer cores."""
    before = _choice.count
    _choice.count = count
    try:
        yield
    finally:
        _choice.count = before


def current_limit() -> Limit:
    """Return the default maximum for this process."""
    return _detected_limit()


@cache
def _detected_limit() -> Limit:
    processes = local_count()
    launcher = detect_launcher() if processes > 1 else None
    return limit(detect(), processes, launcher)


def detect_again() -> None:
    """Count the cores again at the next use: the affinity mask or the quota can have changed."""
    _detected_limit.cache_clear()


def limit(processors: Processors, processes: int = 1, launcher: Processors | None = None) -> Limit:
    """Return the default maximum number of threads of a process.

    Args:
        processors: the cores that the process may use.
        processes: number of processes of torchrun on this machine.
        launcher: the cores that torchrun may use. With fewer for each process, its processes are
            bound to parts of the machine, and do not share their part with all others.
    """
    shared = max(processors.cores, launcher.cores if launcher else 0)
    if processors.quota is not None:
        shared = min(shared, int(processors.quota))
    own = max(min(max(processors.nodes, default=processors.cores), shared // processes), 1)
    return Limit(own, processors, processes)


def _is_set_by_torchrun() -> bool:
    """Return whether torch has one thread because torchrun sets OMP_NUM_THREADS by default.

    In a child of a process of torchrun, such as a worker of a data loader, one thread is a choice.
    """
    is_child = multiprocessing.parent_process() is not None
    return os.environ.get("OMP_NUM_THREADS") == "1" and not is_child


def describe() -> str:
    """Return the current number of threads and its reasons."""
    count, limit = threads(), current_limit()
    reasons = describe_processors(limit.processors)
    if _choice.count is not None:
        return f"{count}: set explicitly; {reasons}"
    if limit.processes > 1:
        reasons += f", shared by {limit.processes} processes of torchrun"
    if count < limit.threads:
        reasons += f", torch uses {_plural(torch.get_num_threads(), 'thread')}"
    return f"{count}: {reasons}"


def describe_processors(processors: Processors) -> str:
    """Return the cores, affinity mask, quota and NUMA nodes as text.

    Examples:
        >>> from recurra.runtime.cores import describe_processors
        >>> from recurra.runtime.processors import Processors
        >>> describe_processors(Processors(16, 16, 8, nodes=(4, 4), quota=1.5))
        '8 cores with 16 hyper-threads, CPU quota 1.5, 4 cores in one of 2 NUMA nodes'
    """
    kind = "performance core" if processors.slower else "core"
    parts = [_plural(processors.cores, kind)]
    if processors.slower:
        parts.append(f"{_plural(processors.slower, 'slower core')} not counted")
    elif processors.allowed > processors.cores:
        parts[0] += f" with {processors.allowed} hyper-threads"
    if processors.allowed < processors.machine:
        parts.append(
            f"affinity mask with {processors.allowed} of {processors.machine} logical CPUs"
        )
    quota = processors.quota
    parts.append("no CPU quota" if quota is None else f"CPU quota {quota:.4g}")
    if len(processors.nodes) > 1:
        most = _plural(processors.nodes[0], "core")
        parts.append(f"{most} in one of {len(processors.nodes)} NUMA nodes")
    else:
        parts.append("1 NUMA node")
    return ", ".join(parts)


def log_default() -> None:
    """Log the default number of threads and its reasons, once.

    The level is INFO if the number differs from that of torch, and otherwise DEBUG.
    """
    message = f"CPU threads: {describe()}; set `threads` to change it"
    # The other processes of torchrun decide the same.
    if message in _logged or started_rank() > 0:
        return
    _logged.add(message)
    level = logging.DEBUG if threads() == torch.get_num_threads() else logging.INFO
    _logger.log(level, message)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _reset_in_child() -> None:
    _choice.count = None
    _detected_limit.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)
