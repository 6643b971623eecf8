"""Memory that is used again instead of being allocated anew.

A fresh tensor of several megabytes costs page faults that take as long as the arithmetic on it.
There are two ways round that. From a shelf memory is borrowed: an ordinary tensor, whose memory
goes back when the tensor itself is freed, when autograd lets go of what it saved, say. What does
the same work again and again keeps memory of its own, found by name. What is in either is
undefined at first.
"""

from __future__ import annotations

from collections import deque
from math import prod
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

SMALLEST_BYTES = 2**16
"""Smaller buffers are not worth keeping: the allocator has them at hand without page faults."""
MOST_BYTES = 2**28
MOST_BUFFERS = 64


class Workspace(Protocol):
    """Where a computation takes its memory from."""

    def take(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """An uninitialised tensor of this shape, with the dtype and device of `like`.

        No view of it may be kept longer than the tensor.
        """


class Shelf:
    """Free buffers, each a flat tensor, the longest unused first."""

    def __init__(self) -> None:
        self._free: deque[Tensor] = deque()
        self._lock = Lock()
        self.free_bytes = 0

    def borrow(self, *shape: int, like: Tensor) -> Tensor:
        """An uninitialised tensor of this shape, with the dtype and device of `like`.

        Its memory is given to somebody else once the tensor is freed, so no view of it may be
        kept longer than the tensor.
        """
        buffer = self._take(prod(shape), like)
        tensor = buffer[: prod(shape)].view(shape)
        if buffer.nbytes >= SMALLEST_BYTES:
            tensor._recurra_loan = _Loan(self, buffer)  # type: ignore[attr-defined]
        return tensor

    def take(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """As `borrow`: a borrowed tensor needs no name."""
        return self.borrow(*shape, like=like)

    def put(self, buffer: Tensor) -> None:
        """Lay a buffer back; the longest unused ones are dropped when the shelf is full."""
        with self._lock:
            self._free.append(buffer)
            self.free_bytes += buffer.nbytes
            while self.free_bytes > MOST_BYTES or len(self._free) > MOST_BUFFERS:
                self.free_bytes -= self._free.popleft().nbytes

    def _take(self, numel: int, like: Tensor) -> Tensor:
        with self._lock:
            for index, buffer in enumerate(self._free):
                fits = numel <= buffer.numel() <= 2 * numel
                if fits and buffer.dtype == like.dtype and buffer.device == like.device:
                    del self._free[index]
                    self.free_bytes -= buffer.nbytes
                    return buffer
        # A buffer born in inference mode could never be written to by a later training step.
        with torch.inference_mode(False):
            return torch.empty(numel, dtype=like.dtype, device=like.device)


class _Loan:
    """Lives as long as the borrowed tensor it is attached to, and takes the buffer back."""

    __slots__ = ("_buffer", "_shelf")

    def __init__(self, shelf: Shelf, buffer: Tensor) -> None:
        self._shelf = shelf
        self._buffer = buffer

    def __del__(self) -> None:
        self._shelf.put(self._buffer)


class Fresh:
    """New memory every time, for what somebody else will hold."""

    def take(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """A new tensor of its own."""
        return torch.empty(shape, dtype=like.dtype, device=like.device)


class Kept:
    """Memory of one owner, there again under its name; it grows and is never given back.

    Attributes:
        buffers: flat tensors by name.
    """

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}
        self._tensors: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """What lies under that name, in this shape."""
        tensor = self._tensors.get(name)
        if tensor is None or tensor.shape != shape or tensor.dtype != like.dtype:
            buffer = self._buffer(name, prod(shape), like)
            tensor = self._tensors[name] = buffer[: prod(shape)].view(shape)
        return tensor

    def _buffer(self, name: str, numel: int, like: Tensor) -> Tensor:
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < numel or buffer.dtype != like.dtype:
            buffer = torch.empty(numel, dtype=like.dtype, device=like.device)
            self.buffers[name] = buffer
        return buffer


SHELF = Shelf()
"""The process's shelf."""
