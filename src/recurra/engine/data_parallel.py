"""Data parallelism: every process computes its rows of each batch, and gradients are summed."""

from __future__ import annotations

import torch
from torch import Tensor

from recurra.config import TrainingConfig
from recurra.engine.autograd import AutogradEngine
from recurra.model.recurrent_lm import RecurrentLM
from recurra.runtime.distributed import Processes


class DataParallelEngine(AutogradEngine):
    """Engine for several processes; see `Engine`.

    Each process weights its loss by its fraction of the rows, so that the sum of the gradients is
    the gradient of the whole batch. All gradients are summed in one all-reduce after the backward
    pass. The models are small: one all-reduce per tensor would cost more than overlapping it with
    the backward pass saves.
    """

    @classmethod
    def unsupported(
        cls, model: RecurrentLM, config: TrainingConfig, processes: Processes
    ) -> str | None:
        """Return why this engine cannot train the model, or None if it can."""
        return "there is only one process" if processes.count == 1 else None

    @torch.no_grad()
    def _combine_gradients(self) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.processes.sum_in_place(flat)
        totals = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, total in zip(gradients, totals, strict=True):
            gradient.copy_(total.view_as(gradient))

    def _combine_losses(self, nats: Tensor) -> None:
        self.processes.sum_in_place(nats)
