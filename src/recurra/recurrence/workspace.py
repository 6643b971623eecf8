"""Buffers that are used again instead of being allocated anew.

A fresh tensor of several megabytes costs page faults that take as long as the arithmetic on it. A
`Lease` holds a buffer for as long as somebody, usually a node of the autograd graph, holds the
lease; when it is freed the buffer goes back on the shelf. Contents are undefined at every lease.
"""

from __future__ import annotations

from collections import OrderedDict
from math import prod

import torch
from torch import Tensor

_SHELF_BYTES = 256 * 2**20


class Shelf:
    """Free buffers, each a flat tensor, the longest unused first."""

    def __init__(self, max_bytes: int = _SHELF_BYTES) -> None:
        self.max_bytes = max_bytes
        self._free: OrderedDict[int, Tensor] = OrderedDict()

    def lease(self, *shape: int, like: Tensor) -> Lease:
        """An uninitialised buffer of this shape, with the dtype and device of `like`."""
        return Lease(self, self._take(prod(shape), like), shape)

    def free_bytes(self) -> int:
        """Bytes that lie on the shelf unused."""
        return sum(buffer.nbytes for buffer in list(self._free.values()))

    def put(self, buffer: Tensor) -> None:
        """Lay a buffer back; the longest unused ones are dropped when the shelf is full."""
        self._free[id(buffer)] = buffer
        while self._free and self.free_bytes() > self.max_bytes:
            self._free.popitem(last=False)

    def _take(self, numel: int, like: Tensor) -> Tensor:
        for key, buffer in reversed(list(self._free.items())):
            fits = numel <= buffer.numel() <= 2 * numel
            if fits and buffer.dtype == like.dtype and buffer.device == like.device:
                # Another thread may have taken it since the list was made.
                taken = self._free.pop(key, None)
                if taken is not None:
                    return taken
        # A buffer born in inference mode could never be written to by a later training step.
        with torch.inference_mode(False):
            return torch.empty(numel, dtype=like.dtype, device=like.device)


class Lease:
    """A buffer on loan: `tensor` is valid as long as the lease lives."""

    def __init__(self, shelf: Shelf, buffer: Tensor, shape: tuple[int, ...]) -> None:
        self._shelf = shelf
        self._buffer = buffer
        self.tensor = buffer[: prod(shape)].view(shape)

    def __del__(self) -> None:
        self._shelf.put(self._buffer)


SHELF = Shelf()
"""The process's shelf."""
