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
from recurra.runtime.distributed import SINGLE_PROCESS, Processes

TEXT_SHARE = 0.25
"""Maximum fraction of the free memory of the GPU for the text."""


class CudaGraph(Graph):
    """A CUDA graph.

    Args:
        stream: the stream that records it.
        pool: the memory of its tensors. Graphs that never run at the same time, and that exchange
            no tensors of the pool with later ones, can share it.
    """

    def __init__(self, stream: torch.cuda.Stream, pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._stream, self._pool = stream, pool

    def record(self, operations: Callable[[], None]) -> None:
        """Record operations without executing them; see `Graph.record`."""
        # Other threads, such as the watchdog of NCCL, may call CUDA during the recording.
        mode = "thread_local"
        with torch.cuda.graph(
            self._graph, pool=self._pool, stream=self._stream, capture_error_mode=mode
        ):
            operations()

    def replay(self) -> None:
        """Execute the recorded operations on the current stream."""
        self._graph.replay()


class CudaRecorder(GraphRecorder):
    """Records CUDA graphs on a separate stream, with one pool of memory.

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
        """Return a context in which operations go to the stream of the recorder.

        The work of both streams is ordered: the operations in the context wait for earlier ones of
        the current stream, and later ones of the current stream wait for them.
        """
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def discard_graphs(self) -> None:
        """Use other memory for later graphs: a pool whose graphs were all deleted is unusable."""
        self._pool = torch.cuda.graph_pool_handle()

    def text_bytes(self) -> int:
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

    def __init__(
        self,
        model: RecurrentLM,
        config: TrainingConfig,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        model.flatten_weights()
        super().__init__(model, config, processes)

    def _new_recorder(self) -> GraphRecorder:
        return CudaRecorder(self.model.device)
