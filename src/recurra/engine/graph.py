"""Engines that record the operations of a step once and replay them, as CUDA graphs do.

In a small model, launching an operation takes longer than executing it. The replay of a graph
launches all operations of a step by one call. The inputs, outputs and intermediate tensors of a
graph keep their addresses, so everything that changes from step to step is read from memory: the
positions of the batch in the text, the learning rate, the seeds of dropout masks, and whether the
state is reset. The host reads no result before `synchronize`.

With several processes a step has two graphs, and the gradients are summed between their replays.
"""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from recurra.config import TrainingConfig
from recurra.data.batches import Batch, Ids
from recurra.engine.autograd import AutogradEngine, StepBuffers, describe_loss
from recurra.engine.clipping import describe_norms
from recurra.engine.engine import StepResult
from recurra.engine.graph_recorder import Graph, GraphRecorder
from recurra.engine.optimizers import supports_recording
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence import dropout
from recurra.recurrence.cells import State
from recurra.runtime.distributed import SINGLE_PROCESS, Processes

MAX_GRAPHS = 128
"""Maximum number of batch shapes with graphs. Windows of random length can have more shapes; their
steps are executed without a graph."""
MAX_PENDING = 32
"""Maximum number of steps whose results have not been read."""
PENDING_SECONDS = 0.2
"""Maximum total duration of the pending steps in seconds, unless a single step takes longer. It
limits the time after which a signal, the end of the time budget or a loss that is not finite is
noticed."""
_SLOT, _RESETS, _LR, _HEADER = 0, 1, 2, 3
"""Indices into the inputs of a step; the positions of the rows and the seeds follow the header."""
_NATS, _NORM, _FAILED, _OVERFLOWED, _NORMS = 0, 1, 2, 3, 4
"""Columns of the results of a step. The last one is the first column of the norms of gradients."""

_logger = logging.getLogger(__name__)


@dataclass
class _Program:
    """The tensors and the graphs of the steps of one batch shape.

    Attributes:
        buffers: the tensors that the operations read and write.
        text: the text on the device; None if it is too large, so that the tokens of a batch are
            inputs.
        num_seeds: number of seeds that a step draws.
        num_inputs: number of inputs of a step; 0 before the first step.
        graphs: the recorded operations; empty until the shape occurs a second time.
        inputs: (num_inputs,) int64 on the device; None until the shape occurs a second time.
    """

    buffers: StepBuffers
    text: Tensor | None
    num_seeds: int = 0
    num_inputs: int = 0
    graphs: list[Graph] = field(default_factory=list)
    inputs: Tensor | None = None


class _SeedsInOrder:
    """Returns the seeds of dropout masks from the inputs of a step, in the order of the masks."""

    def __init__(self, program: _Program) -> None:
        self._program = program
        self._next = program.num_inputs - program.num_seeds

    def next(self) -> Tensor:
        """Return the next seed, a zero-dimensional int64 tensor."""
        assert self._program.inputs is not None
        self._next += 1
        return self._program.inputs[self._next - 1]


class GraphEngine(AutogradEngine):
    """Engine that replays a graph from the second step of each batch shape on; see `Engine`.

    The first step of a shape is executed as by `AutogradEngine`. Subclasses provide the recorder
    for their device.

    Attributes:
        num_recorded: number of batch shapes that were recorded since the last state was loaded.
        num_replayed: number of steps that were replayed.
        max_pending: as in `Engine`; computed from the measured duration of a step.
    """

    capacity, pending_seconds = MAX_PENDING, PENDING_SECONDS

    def __init__(
        self,
        model: RecurrentLM,
        config: TrainingConfig,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        # The weights must have their final addresses before they are recorded.
        model.flatten_weights()
        super().__init__(model, config, processes)
        self.num_recorded, self.num_replayed = 0, 0
        self._programs: dict[Hashable, _Program] = {}
        self._recorder = self._new_recorder()
        self._texts: list[tuple[Ids, Tensor | None]] = []
        self._pending: list[Batch] = []
        self._names: list[str] = []  # of the parameters that have gradients
        self.max_pending, self._started = min(2, self.capacity), 0.0
        width = _NORMS + len(list(model.parameters()))
        shape, device = (self.capacity, width), model.device
        self._results = torch.zeros(shape, dtype=torch.float64, device=device)
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)
        self._staging = torch.zeros(self.capacity, 0, dtype=torch.int64)

    @classmethod
    def unsupported(
        cls, model: RecurrentLM, config: TrainingConfig, processes: Processes
    ) -> str | None:
        """Return why this engine cannot train the model, or None if it can."""
        if model.backend == "native":
            return "a graph cannot record calls of the compiled kernels"
        if not supports_recording(config):
            return f"the optimizer {config.optimizer} reads its state on the host"
        return None

    @abstractmethod
    def _new_recorder(self) -> GraphRecorder:
        """Return a recorder for the device of the model."""

    def step(self, batch: Batch, lr: float) -> None:
        """Execute a step; see `Engine.step`."""
        if not self._pending:
            self._started = time.perf_counter()
        with self._recorder.on_stream():
            program = self._program_of(batch)
            if program.graphs:
                self._stage(program, batch, lr)
                self._replay(program)
            else:
                self._execute_or_record(program, batch, lr)
        self._pending.append(batch)
        self._end_step(program.buffers, batch)

    def gradients(self, batch: Batch, state: State | None) -> tuple[float, State]:
        """Write every parameter's `grad`; see `Engine.gradients`."""
        with self._recorder.on_stream():
            return super().gradients(batch, state)

    def synchronize(self) -> list[StepResult]:
        """Return the results of the steps since the last call; see `Engine.synchronize`."""
        batches, self._pending = self._pending, []
        with self._recorder.on_stream():
            rows = self._results[: len(batches)].cpu().tolist()
        if batches:
            self._limit_pending((time.perf_counter() - self._started) / len(batches))
        results = [self._result(row, batch) for row, batch in zip(rows, batches, strict=True)]
        self._uncount(results)
        return results

    def load_state_dict(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Restore what `state_dict` returned; see `Engine.load_state_dict`."""
        super().load_state_dict(tensors, num_updates)
        # The optimizer has new tensors now, and the graphs contain the addresses of the old ones.
        self._programs.clear()
        self.num_recorded = 0
        self._recorder.discard_graphs()

    def _limit_pending(self, seconds: float) -> None:
        """Set the maximum number of pending steps from the duration of a step.

        The number is the same in all processes, so that all notice a failure at the same step.
        """
        mean = self.processes.sum([seconds])[0] / self.processes.count
        self.max_pending = max(1, int(min(self.capacity, self.pending_seconds / mean)))

    def _program_of(self, batch: Batch) -> _Program:
        text, buffers = self._resident(batch.text), self._buffers_of(batch)
        key = None if text is None else id(text), self._graph_key(batch)
        return self._programs.setdefault(key, _Program(buffers, text))

    def _resident(self, text: Ids) -> Tensor | None:
        """Return the text on the device, or None if it is too large."""
        for known, resident in self._texts:
            if known is text:
                return resident
        small = text.dtype == np.uint8
        is_resident = len(text) * (1 if small else 4) <= self._recorder.max_text_bytes()
        self._texts.append((text, self._upload(text, small) if is_resident else None))
        return self._texts[-1][1]

    def _upload(self, text: Ids, small: bool) -> Tensor:
        dtype = torch.uint8 if small else torch.int32
        resident = torch.empty(len(text), dtype=dtype, device=self.model.device)
        for first in range(0, len(text), 2**24):
            part = np.asarray(text[first : first + 2**24]).astype(np.uint8 if small else np.int32)
            resident[first : first + len(part)].copy_(torch.from_numpy(part))
        return resident

    def _execute_or_record(self, program: _Program, batch: Batch, lr: float) -> None:
        """Execute the first step of a shape; record and replay the second one."""
        # The first step creates the optimizer's state and the workspaces of libraries.
        is_first = not program.num_inputs
        if is_first or not self._recorder.can_record or self.num_recorded >= MAX_GRAPHS:
            self._execute(program, batch, lr)
            return
        program.inputs = torch.zeros(
            program.num_inputs, dtype=torch.int64, device=self.model.device
        )
        self._stage(program, batch, lr)
        if self._record(program, batch):
            self._replay(program)
        else:
            # The seeds are drawn and staged already.
            with dropout.seeds_from(_SeedsInOrder(program).next):
                self._read_inputs(program)
                self._do_step(program.buffers, batch)

    def _execute(self, program: _Program, batch: Batch, lr: float) -> None:
        """Execute the operations of a step without a graph."""
        self._write_inputs(program.buffers, batch, lr)
        self._slot.fill_(len(self._pending))
        with dropout.counted_seeds() as count:
            self._do_step(program.buffers, batch)
        program.num_seeds = count()
        rows = len(batch.own_starts)
        positions = rows if program.text is not None else rows * (batch.num_steps + 1)
        program.num_inputs = _HEADER + positions + program.num_seeds

    def _do_step(self, buffers: StepBuffers, batch: Batch) -> None:
        self._backward(buffers, batch)
        self._exchange(buffers)
        self._update(buffers)

    def _record(self, program: _Program, batch: Batch) -> bool:
        """Record the operations of a step; return False if they cannot be recorded."""
        buffers, seeds = program.buffers, _SeedsInOrder(program)

        def backward() -> None:
            self._read_inputs(program)
            self._backward(buffers, batch)

        def update() -> None:
            self._update(buffers)

        def whole() -> None:
            backward()
            update()

        parts = [whole] if self.processes.count == 1 else [backward, update]
        with dropout.seeds_from(seeds.next):
            program.graphs = self._recorder.record(parts)
        if not program.graphs:
            return False
        self.num_recorded += 1
        if self.num_recorded == MAX_GRAPHS:
            _logger.info(
                "%d batch shapes have graphs; steps of other shapes are executed without one",
                MAX_GRAPHS,
            )
        return True

    def _replay(self, program: _Program) -> None:
        first, *rest = program.graphs
        first.replay()
        for graph in rest:
            self._exchange(program.buffers)
            graph.replay()
        self.num_replayed += 1

    def _stage(self, program: _Program, batch: Batch, lr: float) -> None:
        """Copy the inputs of a step to the device, without waiting for earlier steps."""
        assert program.inputs is not None
        staged = self._staging_row(program.num_inputs)
        values = staged.numpy()
        positions = batch.own_starts if program.text is not None else batch.tokens.ravel()
        end = _HEADER + len(positions)
        values[_SLOT], values[_RESETS] = len(self._pending), batch.reset_state
        values[_LR : _LR + 1].view(np.float64)[0] = lr
        values[_HEADER:end] = positions
        for index in range(end, program.num_inputs):
            values[index] = dropout.draw_seed()
        program.inputs.copy_(staged, non_blocking=True)

    def _staging_row(self, size: int) -> Tensor:
        """Return memory that no pending step reads, (size,) int64."""
        if size > self._staging.shape[1]:
            # torch frees the former memory only after the copies from it.
            is_pinned = self.model.device.type == "cuda"
            shape = self.capacity, size
            self._staging = torch.zeros(shape, dtype=torch.int64, pin_memory=is_pinned)
        return self._staging[len(self._pending), :size]

    def _read_inputs(self, program: _Program) -> None:
        """Write the inputs of a step to its buffers, on the device."""
        inputs, buffers = program.inputs, program.buffers
        assert inputs is not None
        self._slot.copy_(inputs[_SLOT : _SLOT + 1])
        buffers.resets.copy_(inputs[_RESETS] > 0)
        buffers.lr.copy_(inputs.view(torch.float64)[_LR])
        positions = inputs[_HEADER : program.num_inputs - program.num_seeds]
        rows, steps = buffers.ids.shape
        if program.text is None:
            tokens = positions.view(rows, steps + 1)
        else:
            offsets = torch.arange(steps + 1, device=inputs.device)
            places = (positions[:, None] + offsets).flatten()
            tokens = torch.index_select(program.text, 0, places).view(rows, steps + 1)
        buffers.ids.copy_(tokens[:, :-1])
        buffers.targets.copy_(tokens[:, 1:])

    def _update(self, buffers: StepBuffers) -> None:
        super()._update(buffers)
        self._names = [name for name, _ in self._named_parameters()]
        numbers = buffers.nats, buffers.grad_norm, buffers.failed, buffers.overflowed
        row = torch.stack([number.to(torch.float64) for number in numbers])
        norms = self._norms.to(torch.float64)
        padding = norms.new_zeros(self._results.shape[1] - _NORMS - len(norms))
        self._results.index_copy_(0, self._slot, torch.cat([row, norms, padding])[None])

    def _result(self, row: list[float], batch: Batch) -> StepResult:
        nats, failure, skipped = row[_NATS], None, row[_OVERFLOWED] > 0.0
        if row[_FAILED] > 0.0 and not skipped:
            failure = describe_loss(nats, batch)
            if math.isfinite(nats):
                failure = describe_norms(dict(zip(self._names, row[_NORMS:], strict=False)))
        return StepResult(nats, batch.num_tokens, row[_NORM], failure, skipped)
