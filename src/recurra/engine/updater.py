"""One training step: forward pass, backward pass, clipping, optimizer step.

Carries the hidden state from batch to batch. Knows neither budget nor schedule, and of the other
processes only that gradients are averaged over them.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from recurra.config import TrainingConfig
from recurra.data.batches import Batch, BatchStream
from recurra.engine.autograd import AutogradGradients
from recurra.engine.averaging import WeightAverage
from recurra.engine.clipping import clip_gradients, clipping_factor, describe_non_finite
from recurra.engine.compiled import CompiledGradients
from recurra.engine.compiled_optimizer import CompiledUpdate
from recurra.engine.optimizers import build_optimizer
from recurra.engine.select import Gradients, select_gradients
from recurra.errors import NonFiniteError
from recurra.io.tensors import Tensors
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.cells import State
from recurra.recurrence.dropout import Rows
from recurra.runtime.distributed import Processes


class Update(NamedTuple):
    """The loss summed over the batch, and the gradient norm before clipping."""

    nats: float
    grad_norm: float


class Updater:
    """Trains a model, one batch at a time.

    Attributes:
        state: what the next batch starts from, each tensor (L, own rows, H); None is zero.
        backend: the one that computes the recurrence.

    Args:
        model: on its device already.
        config: batch size, clipping, optimiser.
        stream: where the batches come from; knows how their losses are weighed.
        processes: those that share each batch.
    """

    def __init__(
        self, model: RecurrentLM, config: TrainingConfig, stream: BatchStream, processes: Processes
    ) -> None:
        self.model, self.config = model, config
        self.optimizer = build_optimizer(model, config)
        decay = config.weight_averaging
        self._average = WeightAverage(model, decay) if decay > 0.0 else None
        self.state: State | None = None
        self.backend = model.backend_for(stream.recurrent_gradient_scale)
        self._stream, self._processes = stream, processes
        if processes.count > 1:
            self._engine: Gradients = AutogradGradients(model, processes)
        else:
            self._engine = select_gradients(model)
        is_compiled = isinstance(self._engine, CompiledGradients)
        self._compiled_update = CompiledUpdate(self.optimizer) if is_compiled else None
        self.follow(stream)

    @property
    def averages(self) -> Tensors:
        """Of the weights, by name; {} where none are kept."""
        return {} if self._average is None else self._average.tensors

    def averaged_weights(self) -> AbstractContextManager[None]:
        """The model has its weights' averages while this lasts, if they are kept."""
        return nullcontext() if self._average is None else self._average.in_place()

    def update(self, batch: Batch, lr: float, number: int) -> Update:
        """Learn from one batch.

        Args:
            number: of this update; the first is 1.

        Raises:
            NonFiniteError: the loss or a gradient is NaN or infinite; weights, optimiser and
                hidden state are as they were.
            LostProcessError: another process is gone.
        """
        ids = torch.from_numpy(batch.ids).to(self.model.device)
        targets = torch.from_numpy(batch.targets).to(self.model.device)
        loss, state = self.gradients(ids, targets, batch)
        (nats,) = self._processes.sum([loss * targets.numel()])
        if not math.isfinite(nats):
            raise NonFiniteError(f"the loss is {nats / batch.num_tokens}")
        norm = self._step(lr)
        self.state = state
        if self._average is not None:
            self._average.add(number)
        return Update(nats, norm)

    def follow(self, stream: BatchStream) -> None:
        """Take batches from another stream from here on; only their size differs."""
        self._stream = stream
        if self._processes.count > 1 and isinstance(self._engine, AutogradGradients):
            self._engine.rows = Rows(stream.rows, stream.config.batch_size)

    def close(self) -> None:
        """Release the DistributedDataParallel wrapper; no further steps are possible."""
        if isinstance(self._engine, AutogradGradients):
            self._engine.close()

    def gradients(self, ids: Tensor, targets: Tensor, batch: Batch) -> tuple[float, State]:
        """Write every parameter's gradient; return the mean loss and the detached final state."""
        return self._engine.compute(
            ids,
            targets,
            None if batch.fresh else self.state,
            recurrent_gradient_scale=self._stream.recurrent_gradient_scale,
            weight=self._weight(batch),
        )

    def _step(self, lr: float) -> float:
        """Clip and update; the gradients' norm before."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        config = self.config
        named: list[tuple[str, Tensor]] = list(self.model.named_parameters())
        if self._compiled_update is not None and config.clip_value is None:
            norm = self._compiled_update.gradient_norm()
            if not math.isfinite(norm):
                raise NonFiniteError(describe_non_finite(named))
            self._compiled_update.step(lr, clipping_factor(norm, config.clip_norm))
            return norm
        norm = clip_gradients(named, max_norm=config.clip_norm, max_value=config.clip_value)
        self.optimizer.step()
        return norm

    def _weight(self, batch: Batch) -> float:
        """What the mean loss of these rows is multiplied by, so that the mean over the processes
        is the mean over the batch, however the rows are shared."""
        rows = len(batch.ids) * self._processes.count / len(batch.starts)
        return self._stream.loss_weight(batch) * rows
