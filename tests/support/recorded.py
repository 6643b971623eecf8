"""An emulation of CUDA graphs on a CPU, and an engine that uses it.

The operations of a graph are recorded below autograd, with the tensors that they read and write. As
after the capture of a CUDA graph, existing tensors are unchanged: their former values are restored.
A replay first fills all memory that was allocated during the recording with NaN, so that the tests
detect a value that is not recomputed. It then calls each operation on the same tensors and writes
the results to the same memory. During a recording, it is an error if the host reads a tensor or
copies data to the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from recurra.engine.graph import GraphEngine
from recurra.engine.graph_decoder import GraphDecoder
from recurra.engine.graph_recorder import Graph, GraphRecorder

POISON = {torch.bool: True, torch.uint8: 255, torch.int64: 2**62, torch.int32: 2**30}
HOST_READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
HOST_WRITES = {torch.ops.aten.lift_fresh.default}


class Recording(TorchDispatchMode):
    """Dispatch mode that records every operation executed inside it.

    Attributes:
        operations: function, arguments, keyword arguments, results and whether gradients were
            enabled, in order of execution.
        written: the results in memory that was allocated during the recording.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any, bool]] = []
        self.written: list[Tensor] = []
        self._own: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in HOST_READS:
            raise RuntimeError("the host reads a tensor while a graph is recorded")
        if function in HOST_WRITES:
            raise RuntimeError("data of the host is copied while a graph is recorded")
        given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        before = {_memory(t) for t in given}
        if function._schema.is_mutable:
            self._keep(given)
        results = function(*args, **kwargs)
        new = [
            tensor
            for tensor in tree_flatten(results)[0]
            if isinstance(tensor, Tensor) and tensor.numel() and _memory(tensor) not in before
        ]
        if new or function._schema.is_mutable:
            # Detached, because autograd does not allow an operation to be repeated on its tensors.
            plain = tree_map_only(Tensor, torch.Tensor.detach, (args, kwargs, results))
            # Some operations save tensors for their backward pass only if gradients are enabled.
            self.operations.append((function, *plain, torch.is_grad_enabled()))
        self.written += [tensor.detach() for tensor in new]
        self._own |= {_memory(tensor) for tensor in new}
        return results

    def _keep(self, tensors: list[Tensor]) -> None:
        """Copy the values of existing memory that an operation may overwrite."""
        for tensor in tensors:
            memory = _memory(tensor)
            if memory not in self._own and memory not in self._before:
                whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                self._before[memory] = whole, whole.clone()

    def undo(self) -> None:
        """Restore all memory that existed before the recording."""
        for whole, values in self._before.values():
            whole.copy_(values)
        self._before.clear()

    def poison(self) -> None:
        """Overwrite the results of all recorded operations, floating-point ones with NaN."""
        for tensor in self.written:
            tensor.fill_(POISON.get(tensor.dtype, float("nan")))

    def repeat(self) -> None:
        """Execute the operations again on the same tensors."""
        for function, args, kwargs, recorded, grad_enabled in self.operations:
            with torch.set_grad_enabled(grad_enabled):
                results = function(*args, **kwargs)
            for target, tensor in zip(
                tree_flatten(recorded)[0], tree_flatten(results)[0], strict=True
            ):
                if isinstance(target, Tensor) and _memory(target) != _memory(tensor):
                    target.copy_(tensor)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class RecordedGraph(Graph):
    """A graph of recorded operations on a CPU; see `Graph` for the methods."""

    def __init__(self) -> None:
        self.recording, self.num_replayed = Recording(), 0

    def record(self, operations: Callable[[], None]) -> None:
        try:
            with self.recording:
                operations()
        finally:
            self.recording.undo()

    def replay(self) -> None:
        self.num_replayed += 1
        self.recording.poison()
        self.recording.repeat()


class CpuRecorder(GraphRecorder):
    """Records graphs on a CPU; see `GraphRecorder` for the methods.

    Attributes:
        graphs: all graphs that were created.
        text_limit: the result of `max_text_bytes`.
    """

    text_limit = 2**20

    def __init__(self) -> None:
        self.graphs: list[RecordedGraph] = []

    def new_graph(self) -> Graph:
        self.graphs.append(RecordedGraph())
        return self.graphs[-1]

    def on_stream(self):
        return nullcontext()

    def max_text_bytes(self) -> int:
        return self.text_limit


class RecordedEngine(GraphEngine):
    """`GraphEngine` on a CPU; see `Engine` for the methods."""

    capacity, pending_seconds = 5, math.inf

    def _new_recorder(self) -> GraphRecorder:
        return CpuRecorder()


class RecordedDecoder(GraphDecoder):
    """`GraphDecoder` on a CPU; see `Decoder` for the methods."""

    def __init__(self, model, num_samples: int = 1) -> None:
        super().__init__(model, num_samples, CpuRecorder())
