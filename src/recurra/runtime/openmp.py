"""Let torch's OpenMP threads sleep instead of spin while other programs use the processor.

Threads of GNU OpenMP, which torch uses on Linux, spin for about 3 ms when they wait. If other
programs use the processor, the thread that they wait for may not be running, and spinning takes
away the time that it needs: training was up to 300 times slower. The environment
variables that limit spinning have to be set before torch is loaded, and shorter spinning slows
down training on an idle machine. However, the runtime itself shortens the spinning while its
threads outnumber the processors. A parallel region with that many threads is therefore started when
the training thread has to wait for a processor, and ended when it no longer has to. The number of
threads of other regions does not change, and neither do results.

The same happens while the compiled kernels are in use, which have their own threads (see
`kernels/source/pool.h`): a thread of OpenMP that spins after an operation of torch would occupy a
core of theirs.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch

CHECK_SECONDS = 0.05
LINGER_SECONDS = 1.0
"""Time after a block, or a call of a kernel, in which another one continues with its state."""
KERNEL_SECONDS = 0.2
"""Time after a call of a kernel in which spinning is limited."""
SPARE_THREADS = 8
"""Number of threads that a process must be able to start beside those of the region."""
BRIEF_SPINS = 10_000
"""Number of turns that do not disturb the kernels."""
CONTENDED, QUIET = 0.10, 0.03
"""Fraction of the time that the training thread waits for a processor above which spinning is
limited, and below which it is allowed again. The fraction was 0.25 or more beside another training,
and 0.02 or less on an idle machine."""
QUIET_CHECKS = 6
"""Number of successive checks below `QUIET` before spinning is allowed again."""

_logger = logging.getLogger(__name__)


@contextmanager
def limited_spinning() -> Iterator[None]:
    """Limit the spinning of OpenMP threads in the block while the calling thread is displaced.

    The block has no effect without GNU OpenMP, or where the system does not report how long a
    thread waits for a processor.

    Examples:
        >>> from recurra.runtime.openmp import limited_spinning
        >>> with limited_spinning():
        ...     loss = torch.ones(2, 2).square().sum()
    """
    watcher = _Watcher.of_current_thread()
    if watcher is None:
        yield
        return
    watcher.enter()
    try:
        yield
    finally:
        watcher.leave()


def kernels_called() -> None:
    """Limit spinning for a while, because the compiled kernels use the cores of torch's threads."""
    if torch.get_num_threads() > 1 and not _spins_briefly():
        watcher = _Watcher.of_current_thread()
        if watcher is not None:
            watcher.last_kernel = time.monotonic()


class _Watcher(threading.Thread):
    """Watches one thread that trains.

    It outlives the blocks and the calls of kernels for a while, so that a loop with a block for
    each epoch keeps its state.

    Attributes:
        last_kernel: time of the last call of a kernel, of `time.monotonic`.
    """

    _running: ClassVar[dict[int, _Watcher]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def of_current_thread(cls) -> _Watcher | None:
        """Return the watcher of the calling thread, or None if it cannot be watched."""
        thread = threading.get_native_id()
        watcher = cls._running.get(thread)
        if watcher is not None and not watcher.has_ended:
            return watcher
        path = Path(f"/proc/self/task/{thread}/schedstat")
        if _start_region() is None or _seconds_waited(path) is None:
            return None
        watcher = cls(path)
        try:
            watcher.start()
        except RuntimeError:
            # No thread can be started: at a limit, or while the interpreter ends.
            return None
        with cls._lock:
            cls._running = {k: w for k, w in cls._running.items() if not w.has_ended}
            cls._running[thread] = watcher
        return watcher

    @classmethod
    def forget(cls) -> None:
        """Forget the watchers, none of which a forked process has."""
        cls._running, cls._lock = {}, threading.Lock()

    def __init__(self, path: Path) -> None:
        super().__init__(name="recurra-spinning", daemon=True)
        self.last_kernel = -math.inf
        self.has_ended = False
        self._path = path
        self._blocks = 0
        self._left = time.monotonic()

    def enter(self) -> None:
        """Begin a block."""
        with self._lock:
            self._blocks += 1

    def leave(self) -> None:
        """End a block."""
        with self._lock:
            self._blocks -= 1
            self._left = time.monotonic()

    def run(self) -> None:
        """Limit spinning or allow it, until nothing happened for some time."""
        limit = SpinLimit()
        before, start = _seconds_waited(self._path), time.monotonic()
        while not self._is_over():
            # The waiting time of a thread is known only as a sum, so it is read at intervals.
            time.sleep(CHECK_SECONDS)
            waited, now = _seconds_waited(self._path), time.monotonic()
            if before is not None and waited is not None:
                uses_kernels = now - self.last_kernel < KERNEL_SECONDS
                limit.update((waited - before) / (now - start), uses_kernels=uses_kernels)
            before, start = waited, now
        limit.release()

    def _is_over(self) -> bool:
        with self._lock:
            last = max(self._left, self.last_kernel)
            self.has_ended = not self._blocks and time.monotonic() - last > LINGER_SECONDS
            return self.has_ended


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Watcher.forget)


class SpinLimit:
    """Decides when spinning is limited, and limits it.

    Args:
        hold: starts a parallel region with more threads than processors, and returns a function
            that ends it.
    """

    def __init__(self, hold: Callable[[], Callable[[], None]] | None = None) -> None:
        self._hold = hold or _hold_region
        self._release: Callable[[], None] | None = None
        self._quiet_checks = 0

    @property
    def is_limited(self) -> bool:
        """Whether spinning is limited."""
        return self._release is not None

    def update(self, waiting: float, *, uses_kernels: bool = False) -> None:
        """Limit spinning or allow it.

        Args:
            waiting: fraction of the time since the last call that the training thread waited for a
                processor.
            uses_kernels: whether the compiled kernels are in use.
        """
        if not self.is_limited and (waiting > CONTENDED or uses_kernels):
            reason = "the compiled kernels" if uses_kernels else "other programs"
            _logger.debug("%s use the processor: OpenMP threads sleep when they wait", reason)
            self._release = self._hold()
        is_quiet = waiting < QUIET and not uses_kernels
        self._quiet_checks = self._quiet_checks + 1 if is_quiet else 0
        if self._quiet_checks >= QUIET_CHECKS:
            self.release()

    def release(self) -> None:
        """Allow spinning."""
        if self._release is not None:
            self._release()
            self._release = None


def _hold_region() -> Callable[[], None]:
    """Start a region whose threads sleep, and return a function that ends them.

    The threads belong to the thread that starts the region, and end with it. Without enough threads
    there is no region: GNU OpenMP would end the process.
    """
    started, released = threading.Event(), threading.Event()
    threads = _num_processors() + 1
    if not _can_start(threads + SPARE_THREADS):
        return released.set

    def hold() -> None:
        start = _start_region()
        assert start is not None
        start(threads)
        started.set()
        released.wait()

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    started.wait()

    def release() -> None:
        released.set()
        holder.join()

    return release


def _num_processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _can_start(count: int) -> bool:
    """Return whether the system lets this process start so many more threads now."""
    ended = threading.Event()
    threads = [threading.Thread(target=ended.wait, daemon=True) for _ in range(count)]
    started = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
    except RuntimeError:
        return False
    finally:
        ended.set()
        for thread in started:
            thread.join()
    return True


@cache
def _start_region() -> Callable[[int], None] | None:
    """Return a function that runs an empty parallel region, or None without GNU OpenMP."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # A symbol is also looked up in the libraries that this one needs, such as libgomp.
        parallel: Any = ctypes.CDLL(str(library)).GOMP_parallel
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
    except (OSError, AttributeError):
        return None
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    # Each thread calls free(NULL), which does nothing.
    return lambda threads: parallel(nothing, None, threads, 0)


@cache
def _spins_briefly() -> bool:
    """Return whether the environment limits spinning already."""
    turns = os.environ.get("GOMP_SPINCOUNT", "")
    is_brief = turns.isdecimal() and int(turns) <= BRIEF_SPINS
    return is_brief or os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"


def _seconds_waited(path: Path) -> float | None:
    """Return how long a thread was ready but not running, or None if the system does not tell."""
    try:
        return int(path.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None
