"""Let torch's OpenMP threads sleep instead of spin while other programs use the processor.

Threads of GNU OpenMP, which torch uses on Linux, spin for about 3 ms when they wait. If other
programs use the processor, the thread that they wait for may not be running, and spinning takes
away the time that it needs: training was up to 300 times slower. The environment
variables that limit spinning have to be set before torch is loaded, and shorter spinning slows
down training on an idle machine. However, GNU OpenMP shortens the spinning while it has more
threads than there are processors. When the training thread has to wait for a processor, another
thread therefore starts a parallel region with one thread more than there are processors. The region
ends when the training thread no longer waits. The number of threads of other regions does not
change, and neither do results.

The same happens while the compiled kernels are in use, which have their own threads (see
`kernels/source/pool.h`): a thread of OpenMP that spins after an operation of torch would occupy a
core of theirs.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from recurra.runtime import affinity

CHECK_SECONDS = 0.05
"""Seconds between two checks."""
LINGER_SECONDS = 1.0
"""Time for which a thread is watched after its last block or call of a kernel, so that the next one
continues with the present state."""
KERNEL_SECONDS = 0.2
"""Time after a call of a kernel in which spinning is limited."""
SPARE_THREADS = 8
"""Number of threads that a process must be able to start beside those of the region."""
BRIEF_SPINS = 10_000
"""Largest GOMP_SPINCOUNT with which spinning threads do not disturb the kernels."""
CONTENDED, QUIET = 0.10, 0.03
"""Fraction of the time that the training thread waits for a processor above which spinning is
limited, and below which it is allowed again. The fraction was 0.25 or more beside another training,
and 0.02 or less on an idle machine."""
QUIET_CHECKS = 6
"""Number of successive checks below `QUIET` before spinning is allowed again."""

_logger = logging.getLogger(__name__)


@contextmanager
def limited_spinning() -> Iterator[None]:
    """Limit the spinning of OpenMP threads in the block while other programs use the processor.

    Spinning is limited while the calling thread often has to wait for a processor. The block has no
    effect without GNU OpenMP, or where the system does not report how long a thread waits for a
    processor.

    Examples:
        >>> from recurra.runtime.openmp import limited_spinning
        >>> with limited_spinning():
        ...     loss = torch.ones(2, 2).square().sum()
    """
    watched = _watcher.enter()
    try:
        yield
    finally:
        if watched is not None:
            watched.leave()


def kernels_called() -> None:
    """Limit spinning for at least `KERNEL_SECONDS`, beginning with the next check.

    The calling thread is about to call a kernel, which uses the same cores as the threads of torch.
    There is no effect if torch has one thread, without GNU OpenMP, or if the environment limits
    spinning already.
    """
    if torch.get_num_threads() > 1 and not _spins_briefly():
        _watcher.kernel_called()


class _Watched:
    """A thread that trains or calls kernels.

    Attributes:
        blocks: number of the blocks of `limited_spinning` that it is in.
        last_block: time at which it left the last one, of `time.monotonic`.
        last_kernel: time of the last call of a kernel.
    """

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._checked, self._waited = time.monotonic(), seconds_waited(self._thread)
        self.blocks = 0
        self.last_block = time.monotonic()
        self.last_kernel = -math.inf

    def leave(self) -> None:
        """End a block."""
        self.last_block = time.monotonic()
        self.blocks -= 1

    @property
    def is_known(self) -> bool:
        """Whether the system reports how long the thread waits; not so after its end."""
        return self._waited is not None

    @property
    def is_idle(self) -> bool:
        """Whether the thread has done nothing for some time, or has ended."""
        since = time.monotonic() - max(self.last_block, self.last_kernel)
        return not self.is_known or (not self.blocks and since > LINGER_SECONDS)

    @property
    def uses_kernels(self) -> bool:
        """Whether the thread has called a kernel lately."""
        return time.monotonic() - self.last_kernel < KERNEL_SECONDS

    def fraction_waited(self) -> float:
        """Return the fraction of time that the thread waited for a processor since the last call.

        Linux reports the total waiting time of a thread, so the difference of two reports is used.
        """
        before, start = self._waited, self._checked
        self._waited, self._checked = seconds_waited(self._thread), time.monotonic()
        if before is None or self._waited is None or self._checked <= start:
            return 0.0
        return (self._waited - before) / (self._checked - start)


class _Watcher:
    """Limits spinning while a watched thread often has to wait for a processor or calls kernels.

    A single thread checks all of them. It outlives the last block and the last call of a kernel for
    a while, so that a loop with a block for each epoch keeps its state.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, _Watched] = {}
        self._is_running = False

    def enter(self) -> _Watched | None:
        """Begin a block of the calling thread; return its state, or None if it is not watched."""
        if _start_region() is None:
            return None
        with self._lock:
            watched = self._watch()
            if watched is not None:
                watched.blocks += 1
        return watched

    def kernel_called(self) -> None:
        """Note that the calling thread calls a kernel."""
        watched = self._watched.get(threading.get_native_id())
        if watched is None and _start_region() is not None:
            with self._lock:
                watched = self._watch()
        if watched is not None:
            watched.last_kernel = time.monotonic()

    def _watch(self) -> _Watched | None:
        thread = threading.get_native_id()
        watched = self._watched.get(thread) or _Watched(thread)
        if not watched.is_known or not self._start():
            return None
        self._watched = {**self._watched, thread: watched}
        return watched

    def _start(self) -> bool:
        if self._is_running:
            return True
        thread = threading.Thread(target=self._run, name="recurra-spinning", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # No thread can be started: at a limit, or while the interpreter ends.
            return False
        self._is_running = True
        return True

    def _run(self) -> None:
        limit = SpinLimit()
        while self._forget_idle():
            time.sleep(CHECK_SECONDS)
            watched = list(self._watched.values())
            waiting = max((w.fraction_waited() for w in watched), default=0.0)
            limit.update(waiting, uses_kernels=any(w.uses_kernels for w in watched))
        limit.release()

    def _forget_idle(self) -> bool:
        """Forget the threads that are idle; return whether any is left."""
        with self._lock:
            # A new dictionary, because other threads read the present one without the lock.
            self._watched = {t: w for t, w in self._watched.items() if not w.is_idle}
            self._is_running = bool(self._watched)
            return self._is_running


_watcher = _Watcher()


def _forget_watcher() -> None:
    """Start anew in a forked process, which does not have the thread of the watcher."""
    global _watcher
    _watcher = _Watcher()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_watcher)


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
    threads = max(_num_processors(), _PROCESSORS_AT_START) + 1
    if (reason := _reason_too_few(threads)) is not None:
        _logger.info("OpenMP threads continue to spin while they wait: %s", reason)
        return released.set

    def hold() -> None:
        start = _start_region()
        assert start is not None
        try:
            start(threads)
        finally:
            started.set()
        released.wait()

    holder = threading.Thread(target=hold, daemon=True)
    try:
        holder.start()
    except RuntimeError:  # The interpreter ends.
        return released.set
    started.wait()

    def release() -> None:
        released.set()
        holder.join()

    return release


def _reason_too_few(threads: int) -> str | None:
    """Return why a region cannot have so many threads, or None if it can."""
    limit = os.environ.get("OMP_THREAD_LIMIT", "")
    if limit.isdecimal() and int(limit) < threads:
        return f"OMP_THREAD_LIMIT={limit} is below {threads}"
    if os.environ.get("OMP_DYNAMIC", "").lower() == "true":
        return "OMP_DYNAMIC=true lowers the number of threads"
    if not _can_start(threads + SPARE_THREADS):
        return f"this process cannot start {threads + SPARE_THREADS} more threads"
    return None


def _num_processors() -> int:
    if sys.platform == "linux":
        return len(affinity.allowed_processors())
    return os.cpu_count() or 1


_PROCESSORS_AT_START = _num_processors()
"""Number of processors of this process when this module was imported. GNU OpenMP compares its
number of threads with the number that it counted when it was loaded, which can differ, for example
if the affinity mask changed in between."""


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
    try:
        # A symbol is also looked up in the libraries that this one needs, such as libgomp.
        parallel: Any = affinity.torch_library().GOMP_parallel
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


def seconds_waited(thread: int) -> float | None:
    """Return how long a thread has been ready but not running, or None if it is unknown.

    Args:
        thread: a thread of this process, as `threading.get_native_id` returns it.
    """
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None
