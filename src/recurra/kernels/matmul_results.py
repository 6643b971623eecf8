"""Store the measured speeds of the matrix-product kernels in a file that processes share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from recurra.errors import KernelError, RunError
from recurra.io.json_files import read_json, write_json
from recurra.kernels import selection, structures

KERNELS = {name[1:].lower(): kind for name, kind in structures.ENUMERATIONS["Kind"].items()}
"""The number of each matrix-product kernel by name: single (fp32); rounded, pairs and tiles (bf16).
See `Kind` in `source/kernels.h`."""
LOCK_SECONDS = 60.0
"""Time for which a process waits for the measurement of another one."""
_FILE, _FORMAT = "matmul.json", 1

_logger = logging.getLogger(__name__)


@dataclass
class MatmulMeasurements:
    """The measured speeds of the matrix-product kernels, and the selected one.

    Attributes:
        bf16: the name of the selected kernel for bf16, see `KERNELS`.
        wrong: names of the kernels whose results were wrong.
        gflops: GFLOP/s of the recurrent products of both passes, by the size of the layer
            (`str(LayerSize)`) and the name of the kernel.
        speedups: time in fp32 divided by time in bf16, by the size of the layer and the name of the
            bf16 kernel, such as "lstm 512, 32 rows, 2 threads, pairs".
    """

    bf16: str
    wrong: list[str] = field(default_factory=list)
    gflops: dict[str, dict[str, float]] = field(default_factory=dict)
    speedups: dict[str, float] = field(default_factory=dict)


def path() -> Path:
    """Return the path of the file, in the cache directory of the selected library.

    Raises:
        KernelError: there is no cache directory, or as for `selection.select`.
        ConfigError: as for `selection.select`.
    """
    return selection.select().folder / _FILE


def read() -> MatmulMeasurements | None:
    """Return the stored measurements, or None if there are none that are valid."""
    try:
        record = read_json(path())
    except (OSError, KernelError, RunError, ValueError):
        return None
    if record.pop("format", None) != _FORMAT or not _is_valid(record):
        return None
    return MatmulMeasurements(**record)


def write(found: MatmulMeasurements) -> None:
    """Store measurements; an error, such as a full disk, is logged, and nothing is stored."""
    try:
        write_json(path(), {"format": _FORMAT, **vars(found)})
    except (OSError, KernelError) as error:
        _logger.info("the measured speed of the matrix products is not stored: %s", error)


@contextmanager
def locked() -> Iterator[None]:
    """Let one process measure at a time, so that they do not disturb each other.

    If the lock cannot be acquired within `LOCK_SECONDS`, or the file system does not support locks,
    the block runs without it.
    """
    lock = None
    try:
        file = path()
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_name(f"{file.name}.lock"))
        _acquire(lock)
    except (KernelError, OSError, NotImplementedError) as error:
        # There is no cache directory, it is not writable, the time is over, or the file system has
        # no locks. At worst, two processes then measure at the same time, and either may store.
        _logger.info("the measurement of the matrix products is not locked: %s", error)
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _acquire(lock: BaseFileLock) -> None:
    try:
        lock.acquire(timeout=1.0)
    except Timeout:
        _logger.warning(
            "waiting for another process that measures the matrix products, at most %.0f s",
            LOCK_SECONDS,
        )
        lock.acquire(timeout=LOCK_SECONDS)


def _is_valid(record: dict[str, Any]) -> bool:
    gflops, wrong, bf16 = record.get("gflops"), record.get("wrong"), record.get("bf16")
    return (
        record.keys() == {"bf16", "wrong", "gflops", "speedups"}
        and isinstance(wrong, list)
        and all(isinstance(name, str) and name in KERNELS for name in wrong)
        and isinstance(bf16, str)
        and bf16 in KERNELS.keys() - {"single", *wrong}
        and isinstance(gflops, dict)
        and bool(gflops)
        and all(
            _are_speeds(speeds) and speeds.keys() <= KERNELS.keys() for speeds in gflops.values()
        )
        and all("single" in speeds and bf16 in speeds for speeds in gflops.values())
        and _are_speeds(record["speedups"])
    )


def _are_speeds(numbers: Any) -> bool:
    return isinstance(numbers, dict) and all(
        isinstance(number, (int, float)) and not isinstance(number, bool) and 1e-3 < number < 1e6
        for number in numbers.values()
    )
