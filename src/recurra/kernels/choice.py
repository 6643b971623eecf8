"""Choose the kind of products by measurement, when the kernels are first used.

Each kind that the build and the machine have is compared with torch on small problems, and a kind
with wrong results is never used. The fastest of the others computes bf16 products. The result is
stored with the build, so that all runs on this machine use the same kind.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from recurra.errors import KernelError, RunError
from recurra.io.files import read_json, write_json
from recurra.kernels import library, selection, structures
from recurra.kernels.products import SINGLE
from recurra.kernels.trials import LayerSize, is_correct, layer_seconds

FILE = "products.json"
KINDS = {name[1:].lower(): kind for name, kind in structures.ENUMERATIONS["Kind"].items()}
"""The number of each kind of product by name: single (fp32), rounded, pairs and tiles (bf16)."""
DESCRIPTIONS = {
    "single": "fp32",
    "rounded": "bf16 by rounding",
    "pairs": "bf16 pairs",
    "tiles": "bf16 tiles (AMX)",
}
_SIZES = (("lstm", 256, 16), ("lstm", 512, 32))
"""Cell, units and rows at which the kinds are compared."""
_FORMAT = 1

_logger = logging.getLogger(__name__)
_lock = threading.Lock()


@dataclass
class Products:
    """The kinds of products on this machine.

    Attributes:
        kind: the name of the kind for bf16, see `KINDS`.
        wrong: the kinds whose results were wrong.
        gflops: GFLOP/s of each kind by size of a layer, both passes.
        ratios: by size of a layer, the time in fp32 divided by the time in bf16.
    """

    kind: str
    wrong: list[str] = field(default_factory=list)
    gflops: dict[str, dict[str, float]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the kind and the speed of each kind at the largest size."""
        size, speeds = list(self.gflops.items())[-1]
        listed = ", ".join(f"{DESCRIPTIONS[name]} {speed:.0f}" for name, speed in speeds.items())
        wrong = "".join(f"; {DESCRIPTIONS[name]}: wrong results, not used" for name in self.wrong)
        return f"{DESCRIPTIONS[self.kind]} for bf16; GFLOP/s of {size}: {listed}{wrong}"


def product_kind(dtype: torch.dtype) -> int:
    """Return the kind of product for operands of a dtype, see `Kind` in `source/kernels.h`.

    Raises:
        KernelError: as for `products`.
    """
    found = products()
    return SINGLE if dtype == torch.float32 else KINDS[found.kind]


def products() -> Products:
    """Return the kinds of products on this machine; the first call on a machine measures them.

    The environment variable RECURRA_PRODUCT selects a kind (rounded, pairs or tiles) instead.

    Raises:
        KernelError: the kernels cannot be loaded, their fp32 products are wrong, or the kind of
            RECURRA_PRODUCT is unknown or not available.
    """
    with _lock:
        found = _stored()
    forced = os.environ.get("RECURRA_PRODUCT", "")
    if not forced:
        return found
    if forced not in DESCRIPTIONS or forced == "single":
        raise KernelError(f"RECURRA_PRODUCT is rounded, pairs or tiles, not {forced!r}")
    if forced in found.wrong or not library.load().recurra_has_kind(KINDS[forced]):
        raise KernelError(
            f"this machine or its kernels have no products of RECURRA_PRODUCT={forced}"
        )
    return Products(forced, found.wrong, found.gflops, found.ratios)


def bf16_ratio(cell: str, units: int, rows: int) -> float:
    """Return how many times faster a layer is in bf16 than in fp32, with the current threads.

    The first call for a size measures it, which takes some milliseconds, and stores the result.

    Raises:
        KernelError: as for `products`.
    """
    size, found = LayerSize(cell, units, rows, library.threads()), products()
    key = f"{size}, {found.kind}"
    with _lock:
        if key not in found.ratios:
            single, half = layer_seconds(size, (SINGLE, KINDS[found.kind]))
            found.ratios[key] = round(single / half, 3)
            _store(_stored())
        return found.ratios[key]


@cache
def _stored() -> Products:
    """Return the stored result, or measure and store it."""
    library.load()
    with _file_lock():
        found = _read()
        if found is None:
            found = _measure()
            _store(found)
    return found


@contextmanager
def _file_lock() -> Iterator[None]:
    """Hold a lock for all processes, so that they choose the same kind."""
    try:
        folder = selection.select().folder
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{FILE}.lock")
        lock.acquire()
    except (KernelError, OSError):
        # Nothing can be stored here: each process measures for itself.
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _path() -> Path:
    return selection.select().folder / FILE


def _read() -> Products | None:
    try:
        record = read_json(_path())
        if record.pop("format", None) != _FORMAT:
            return None
        found = Products(**record)
        is_known = found.kind in DESCRIPTIONS and found.kind not in found.wrong
        has_kind = is_known and library.load().recurra_has_kind(KINDS[found.kind])
        return found if has_kind and found.gflops else None
    except (OSError, KernelError, RunError, TypeError, ValueError):
        return None


def _store(found: Products) -> None:
    try:
        write_json(_path(), {"format": _FORMAT, **vars(found)})
    except (OSError, KernelError) as error:
        _logger.info("the measured speed of the products is not stored: %s", error)


def _measure() -> Products:
    available = [name for name, kind in KINDS.items() if library.load().recurra_has_kind(kind)]
    wrong = [name for name in available if not is_correct(KINDS[name])]
    if "single" in wrong or "rounded" in wrong:
        raise KernelError(
            "the products of the built kernels are wrong on this machine; set RECURRA_KERNELS=0 to"
            " do without the kernels"
        )
    for name in wrong:
        _logger.warning("products of %s are wrong on this machine and not used", DESCRIPTIONS[name])
    names = [name for name in available if name not in wrong]
    gflops = {}
    for cell, units, rows in _SIZES:
        size = LayerSize(cell, units, rows, library.threads())
        seconds = layer_seconds(size, [KINDS[name] for name in names])
        gflops[str(size)] = {
            name: round(size.flops / time / 1e9, 1)
            for name, time in zip(names, seconds, strict=True)
        }
    # The sizes count alike: the kind with the least total time relative to fp32.
    time_of = {
        name: sum(speeds["single"] / speeds[name] for speeds in gflops.values())
        for name in names
        if name != "single"
    }
    return Products(min(time_of, key=time_of.__getitem__), wrong, gflops)
