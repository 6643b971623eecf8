"""CUDA graphs for training, generation and evaluation on an NVIDIA or AMD GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from recurra.config import TrainingConfig
from recurra.engine.graph import GraphEngine
from recurra.engine.graph_recorder import Graph, GraphRecorder
from recurra.model.recurrent_lm import RecurrentLM
from recurra.runtime.distributed import Processes

TEXT_SHARE = 0.25
"""Maximum fraction of the free memory of the GPU for the text."""


class CudaGraph(Graph):
    """A CUDA graph.

    Args:
        stream: the stream on which the operations are captured.
        pool: the memory pool of the tensors that the operations allocate. Graphs can share a pool
            if they never run at the same time, and no graph reads a tensor of the pool after the
            replay of a graph that was captured when this memory was free.
    """

    def __init__(self, stream: torch.cuda.Stream, pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._stream, self._pool = stream, pool

    def record(self, operations: Callable[[], None]) -> None:
        """Capture operations without executing them; see `Graph.record`."""
        # Other threads, such as the watchdog of NCCL, may call CUDA during the capture.
        mode = "thread_local"
        with torch.cuda.graph(
            self._graph, pool=self._pool, stream=self._stream, capture_error_mode=mode
        ):
            operations()

    def replay(self) -> None:
        """Launch the captured operations on the current stream."""
        self._graph.replay()


class CudaRecorder(GraphRecorder):
    """Captures CUDA graphs on a side stream, with one memory pool for all of them.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def new_graph(self) -> Graph:
        """Return a graph without operations."""
        return CudaGraph(self._stream, self._pool)

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """Return a context in which the stream of the recorder is the current stream.

        The operations in the context wait for earlier operations of the stream that was current
        before, and later operations of that stream wait for those in the context.
        """
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def discard_graphs(self) -> None:
        """Use a new memory pool for later graphs; see `GraphRecorder.discard_graphs`.

        A pool cannot be used again after all of its graphs were deleted.
        """
        self._pool = torch.cuda.graph_pool_handle()

    def max_text_bytes(self) -> int:
        """Return the maximum size of a text that is copied to the GPU, in bytes."""
        free, _ = torch.cuda.mem_get_info(self._device)
        return int(TEXT_SHARE * free)


class CudaGraphEngine(GraphEngine):
    """Engine that trains on a GPU with one CUDA graph for each batch shape; see `Engine`.

    With several processes, there are two graphs for each shape.
    """

    @classmethod
    def unsupported(
        cls, model: RecurrentLM, config: TrainingConfig, processes: Processes
    ) -> str | None:
        """Return why this engine cannot train the model, or None if it can."""
        if model.device.type != "cuda":
            return f"CUDA graphs need a CUDA device, not {model.device.type}"
        return super().unsupported(model, config, processes)

    def _new_recorder(self) -> GraphRecorder:
        return CudaRecorder(self.model.device)
