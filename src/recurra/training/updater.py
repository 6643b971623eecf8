"""One update: forward through a window, backward through time, clipping, the optimiser.

Carries the hidden state from batch to batch. Knows neither budget nor schedule, and of the other
processes only that gradients are averaged over them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recurra.config import TrainingConfig
from recurra.errors import NonFiniteError
from recurra.model import RecurrentLM
from recurra.processes import Processes, losses_named
from recurra.recurrence.cells import State
from recurra.recurrence.scan import Rows
from recurra.training.batches import Batch, BatchStream
from recurra.training.clipping import clip_gradients
from recurra.training.optimizer import build_optimizer


class Update(NamedTuple):
    """What one update showed: the loss summed over the batch, and the gradient's norm."""

    nats: float
    grad_norm: float


class _Objective(nn.Module):
    """The loss as a module's forward pass, which is what torch's engine can share."""

    def __init__(self, model: RecurrentLM, rows: Rows | None, gradient_scale: float) -> None:
        super().__init__()
        self.model, self.rows, self.gradient_scale = model, rows, gradient_scale

    def forward(self, ids: Tensor, targets: Tensor, state: State | None) -> tuple[Tensor, State]:
        return self.model.loss(
            ids,
            targets,
            state,
            recurrent_gradient_scale=self.gradient_scale,
            rows=self.rows,
        )


class Updater:
    """Improves a model batch by batch.

    Attributes:
        state: what the next batch starts from, each tensor (L, own rows, H); None is zero.

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
        self.state: State | None = None
        self._stream, self._processes = stream, processes
        rows = Rows(stream.rows, config.batch_size) if processes.count > 1 else None
        self._objective = processes.joined(_Objective(model, rows, stream.recurrent_gradient_scale))

    def update(self, batch: Batch, lr: float) -> Update:
        """Learn from one batch.

        Raises:
            NonFiniteError: the loss or a gradient is NaN or infinite; weights, optimiser and
                hidden state are as they were.
            LostProcessError: another process is gone.
        """
        ids = torch.from_numpy(batch.ids).to(self.model.device)
        targets = torch.from_numpy(batch.targets).to(self.model.device)
        loss, state = self._objective(ids, targets, None if batch.fresh else self.state)
        self.optimizer.zero_grad(set_to_none=True)
        with losses_named():
            torch.autograd.backward(loss * self._weight(batch))
        (nats,) = self._processes.sum([float(loss.detach()) * targets.numel()])
        if not math.isfinite(nats):
            raise NonFiniteError(f"the loss is {nats / batch.num_tokens}")
        norm = clip_gradients(
            self.model.named_parameters(),
            max_norm=self.config.clip_norm,
            max_value=self.config.clip_value,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.state = tuple(s.detach() for s in state)
        return Update(nats, norm)

    def close(self) -> None:
        """Let go of the other processes; nothing can be learned any more."""
        del self._objective

    def _weight(self, batch: Batch) -> float:
        """What the mean loss of these rows is multiplied by, so that the mean over the processes
        is the mean over the batch, however the rows are shared."""
        rows = len(batch.ids) * self._processes.count / len(batch.starts)
        return self._stream.loss_weight(batch) * rows
