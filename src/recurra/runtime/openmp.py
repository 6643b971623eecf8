"""Let torch's OpenMP threads sleep instead of spin while other programs use the processor.

Threads of GNU OpenMP, which torch uses on Linux, spin for about 3 ms when they wait. If other
programs use the processor, the thread that they wait for may not be running, and spinning takes
away the time that it needs: training becomes up to a hundred times slower. The environment
variables that limit spinning have to be set before torch is loaded, and shorter spinning slows
down training on an idle machine. However, the runtime itself shortens the spinning while its
threads outnumber the processors. A parallel region with that many threads is therefore started when
the training thread has to wait for a processor, and ended when it no longer has to. The number of
threads of other regions does not change, and neither do results.

The threads of the compiled kernels are separate, see `kernels/source/pool.h`.
"""

from __future__ import annotations

import ctypes
import logging
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
"""Time after a block in which another block continues with its state."""
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
    path = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    if _start_region() is None or _seconds_waited(path) is None:
        yield
        return
    watcher = _Watcher.of(path)
    try:
        yield
    finally:
        watcher.leave()


class _Watcher(threading.Thread):
    """Watches one training thread.

    It outlives a block for a while, so that a loop with a block for each epoch keeps its state.
    """

    _running: ClassVar[dict[Path, _Watcher]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def of(cls, path: Path) -> _Watcher:
        """Return the watcher of a thread, to be left at the end of a block."""
        with cls._lock:
            watcher = cls._running.get(path)
            if watcher is None:
                watcher = cls._running[path] = cls(path)
                watcher.start()
            watcher._blocks += 1
            return watcher

    def __init__(self, path: Path) -> None:
        super().__init__(name="recurra-spinning", daemon=True)
        self._path = path
        self._blocks = 0
        self._left = time.monotonic()

    def leave(self) -> None:
        """End a block."""
        with self._lock:
            self._blocks -= 1
            self._left = time.monotonic()

    def run(self) -> None:
        """Limit spinning or allow it, until no block was entered for some time."""
        limit = SpinLimit()
        before, start = _seconds_waited(self._path), time.monotonic()
        while not self._has_ended():
            time.sleep(CHECK_SECONDS)
            waited, now = _seconds_waited(self._path), time.monotonic()
            if before is not None and waited is not None:
                limit.update((waited - before) / (now - start))
            before, start = waited, now
        limit.release()

    def _has_ended(self) -> bool:
        with self._lock:
            has_ended = not self._blocks and time.monotonic() - self._left > LINGER_SECONDS
            if has_ended:
                del self._running[self._path]
            return has_ended


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

    def update(self, waiting: float) -> None:
        """Limit spinning or allow it.

        Args:
            waiting: fraction of the time since the last call that the training thread waited for a
                processor.
        """
        if waiting > CONTENDED and not self.is_limited:
            _logger.debug("other programs use the processor: OpenMP threads sleep when they wait")
            self._release = self._hold()
        self._quiet_checks = self._quiet_checks + 1 if waiting < QUIET else 0
        if self._quiet_checks >= QUIET_CHECKS:
            self.release()

    def release(self) -> None:
        """Allow spinning."""
        if self._release is not None:
            self._release()
            self._release = None


def _hold_region() -> Callable[[], None]:
    """Start a region whose threads sleep, and return a function that ends them.

    The threads belong to the thread that starts the region, and end with it.
    """
    started, released = threading.Event(), threading.Event()

    def hold() -> None:
        start = _start_region()
        assert start is not None
        start((os.cpu_count() or 1) + 1)
        started.set()
        released.wait()

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    started.wait()

    def release() -> None:
        released.set()
        holder.join()

    return release


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


def _seconds_waited(path: Path) -> float | None:
    """Return how long a thread was ready but not running, or None if the system does not tell."""
    try:
        return int(path.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None
