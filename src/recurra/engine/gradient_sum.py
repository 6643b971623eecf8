"""Data parallelism: every process computes its rows of each batch, and gradients are summed.

Each process weights its loss by its fraction of the rows, so that the sum of the gradients is the
gradient of the whole batch. All gradients are summed in one all-reduce after the backward pass. The
models are small: an all-reduce for each tensor would cost more than its overlap with the backward
pass would save.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recurra.runtime.distributed import Processes


class GradientSum:
    """The gradients of one model in one buffer, which is summed over the processes.

    `pack` and `unpack` are operations on the device, which a graph can record. `exchange`, which is
    called between them, communicates. The buffer keeps its address. With one process, the methods
    do nothing.

    Args:
        parameters: the parameters of the model.
        processes: the processes that share each batch.
    """

    def __init__(self, parameters: list[Tensor], processes: Processes) -> None:
        self._parameters, self._processes = parameters, processes
        self._flat: Tensor | None = None
        self._packed: list[Tensor] = []

    @torch.no_grad()
    def pack(self) -> None:
        """Copy every parameter's `grad` into the buffer."""
        if self._processes.count == 1:
            return
        self._packed = [p for p in self._parameters if p.grad is not None]
        sizes = [p.numel() for p in self._packed]
        if self._flat is None or self._flat.numel() != sum(sizes):
            self._flat = self._packed[0].new_empty(sum(sizes))
        gradients = [p.grad for p in self._packed if p.grad is not None]
        torch._foreach_copy_(self._views(), gradients)

    def exchange(self) -> None:
        """Sum the buffer over the processes in place, by an all-reduce.

        Raises:
            LostProcessError: another process has ended.
        """
        if self._processes.count == 1:
            return
        assert self._flat is not None
        self._processes.sum_in_place(self._flat)

    def unpack(self) -> None:
        """Make every parameter's `grad` a view of the buffer."""
        if self._processes.count == 1:
            return
        for parameter, view in zip(self._packed, self._views(), strict=True):
            parameter.grad = view

    def _views(self) -> list[Tensor]:
        assert self._flat is not None
        parts = torch.split(self._flat, [p.numel() for p in self._packed])
        return [part.view_as(p) for part, p in zip(parts, self._packed, strict=True)]
