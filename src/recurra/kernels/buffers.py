"""Buffer pools that reuse memory instead of allocating it again.

Allocating a tensor of several megabytes costs page faults that take as long as the arithmetic on
it. Two kinds of buffers avoid this. A pool lends an ordinary tensor whose storage returns to the
pool when the tensor is freed, for example when autograd releases what it saved. Persistent buffers
are looked up by name, for work that repeats. Buffers are uninitialized.
"""

from __future__ import annotations

from collections import deque
from math import prod
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

MIN_POOLED_BYTES = 2**16
"""Minimum size of a pooled buffer; the allocator reuses smaller ones without page faults."""
MAX_FREE_BYTES = 2**28
MAX_FREE_BUFFERS = 64


class Workspace(Protocol):
    """A source of memory for a computation."""

    def take(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """Return an uninitialized tensor of this shape, with the dtype and device of `like`.

        No view may outlive the tensor.
        """


class BufferPool:
    """A pool of free buffers, each a flat tensor, the least recently used first."""

    def __init__(self) -> None:
        self._free: deque[Tensor] = deque()
        self._lock = Lock()
        self.free_bytes = 0

    def borrow(self, *shape: int, like: Tensor) -> Tensor:
        """Return an uninitialized tensor of this shape, with the dtype and device of `like`.

        On a CPU, its storage is reused once the tensor is freed, so no view may outlive the tensor.
        """
        numel = prod(shape)
        # torch's allocators for other devices cache memory themselves. A CUDA graph must not use
        # pooled memory, which could be lent again, or freed, between two replays.
        if numel * like.element_size() < MIN_POOLED_BYTES or like.device.type != "cpu":
            return _new(shape, like)
        buffer = self._take(numel, like)
        tensor = buffer[:numel].view(shape)
        tensor._recurra_loan = _Loan(self, buffer)  # type: ignore[attr-defined]
        return tensor

    def take(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """Same as `borrow`; the name is ignored."""
        return self.borrow(*shape, like=like)

    def put(self, buffer: Tensor) -> None:
        """Return a buffer; the least recently used ones are dropped when the pool is full."""
        with self._lock:
            self._free.append(buffer)
            self.free_bytes += buffer.nbytes
            while self.free_bytes > MAX_FREE_BYTES or len(self._free) > MAX_FREE_BUFFERS:
                self.free_bytes -= self._free.popleft().nbytes

    def _take(self, numel: int, like: Tensor) -> Tensor:
        with self._lock:
            for index, buffer in enumerate(self._free):
                fits = numel <= buffer.numel() <= 2 * numel
                if fits and buffer.dtype == like.dtype and buffer.device == like.device:
                    del self._free[index]
                    self.free_bytes -= buffer.nbytes
                    return buffer
        return _new((numel,), like)


def _new(shape: tuple[int, ...], like: Tensor) -> Tensor:
    if not torch.is_inference_mode_enabled():
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    # Autograd cannot write to a tensor that was created in inference mode.
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=like.dtype, device=like.device)


class _Loan:
    """Returns a buffer to its pool when the borrowed tensor that holds this object is freed."""

    __slots__ = ("_buffer", "_pool")

    def __init__(self, pool: BufferPool, buffer: Tensor) -> None:
        self._pool = pool
        self._buffer = buffer

    def __del__(self) -> None:
        self._pool.put(self._buffer)


class NewBuffers:
    """Allocates a new tensor on every call, for tensors that are returned to the caller."""

    def take(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """Return a new tensor."""
        return torch.empty(shape, dtype=like.dtype, device=like.device)


class PersistentBuffers:
    """Buffers of one owner, found again by name; they grow and are never released.

    Attributes:
        buffers: flat tensors by name.
    """

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}
        self._tensors: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """Return the buffer of this name as a tensor of this shape."""
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


BUFFER_POOL = BufferPool()
"""The buffer pool of this process."""
