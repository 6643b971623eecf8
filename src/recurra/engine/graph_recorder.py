"""Interfaces for recording operations on a device and replaying them, as CUDA graphs do.

CUDA calls the recording a capture. `cuda_graph.py` implements the interfaces for GPUs, and
tests/support/recorded.py for a CPU.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

Operations = Callable[[], None]

_logger = logging.getLogger(__name__)


class Graph(ABC):
    """A recorded sequence of operations."""

    @abstractmethod
    def record(self, operations: Operations) -> None:
        """Record operations without executing them.

        Raises:
            RuntimeError: an operation cannot be recorded, for example because the host waits for
                the device.
        """

    @abstractmethod
    def replay(self) -> None:
        """Execute the recorded operations on the same memory."""


class GraphRecorder(ABC):
    """Records graphs on one device.

    Attributes:
        can_record: False after an operation could not be recorded.
    """

    can_record = True

    @abstractmethod
    def new_graph(self) -> Graph:
        """Return a graph without operations."""

    @abstractmethod
    def on_stream(self) -> AbstractContextManager[None]:
        """Return a context for recording and replaying graphs, and for the operations around them.

        On a GPU, it selects the stream of the recorder.
        """

    @abstractmethod
    def max_text_bytes(self) -> int:
        """Return the maximum size of a text that is copied to the device, in bytes."""

    def discard_graphs(self) -> None:  # noqa: B027
        """Prepare to record new graphs after all graphs of this recorder were deleted."""

    def record(self, parts: Sequence[Operations]) -> list[Graph]:
        """Record a graph for each part.

        Returns:
            The graphs. If an operation cannot be recorded, the list is empty and the reason is
            logged.

        Raises:
            torch.OutOfMemoryError: the device does not have enough memory.
        """
        graphs = [self.new_graph() for _ in parts]
        try:
            for graph, part in zip(graphs, parts, strict=True):
                graph.record(part)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = (str(error).splitlines() or ["unknown"])[0]
            _logger.info("operations are executed without a graph: %s", reason)
            self.can_record = False
            return []
        return graphs


class RepeatedOperations:
    """Operations that are executed the first time, and recorded and replayed afterwards.

    The first execution lets libraries allocate their workspaces. If the operations cannot be
    recorded, they are executed every time.

    Args:
        recorder: the recorder of the device.
    """

    def __init__(self, recorder: GraphRecorder) -> None:
        self._recorder = recorder
        self._graphs: list[Graph] = []
        self._is_first = True

    # The operations are an argument, because an object that kept its own methods would be freed,
    # with the memory of the device, only by the garbage collector.
    def execute(self, operations: Operations) -> None:
        """Execute the operations once.

        Args:
            operations: the same at each call; they read and write tensors that keep their
                addresses.
        """
        if not self._is_first and not self._graphs and self._recorder.can_record:
            self._graphs = self._recorder.record([operations])
        self._is_first = False
        if self._graphs:
            self._graphs[0].replay()
        else:
            operations()
