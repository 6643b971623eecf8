"""The reference engine: gradients by autograd, updates by torch's optimizers.

A step is a fixed sequence of tensor operations on buffers that keep their addresses, and the host
reads none of their values during a step. Operations with these properties can be recorded and
replayed, for example as a CUDA graph; tests/support/recorded.py does so.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from recurra.config import TrainingConfig
from recurra.data.batches import Batch
from recurra.engine.clipping import clip_finite_gradients, describe_non_finite
from recurra.engine.engine import Engine, StepResult
from recurra.engine.optimizers import apply_update
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.cells import State
from recurra.recurrence.dropout import Rows
from recurra.runtime.distributed import SINGLE_PROCESS, Processes


class AutogradGradients:
    """Loss and gradients of one model by autograd.

    Args:
        model: the model, already on its device.
    """

    def __init__(self, model: RecurrentLM) -> None:
        self._model = model

    def compute(
        self,
        ids: Tensor,
        targets: Tensor,
        state: State | None = None,
        *,
        recurrent_gradient_scale: float = 1.0,
        weight: float = 1.0,
        rows: Rows | None = None,
    ) -> tuple[float, State]:
        """Write the gradient of `weight` times the mean loss to every parameter's `grad`.

        Args:
            ids, targets: (B, T) int64; `targets[b, t]` follows `ids[b, t]`.
            state: the state before the batch, each tensor (L, B, H); None is zero.
            recurrent_gradient_scale: multiplies every gradient that passes from one step to the
                step before.
            weight: multiplies the loss before the backward pass.
            rows: the position of these rows in a larger batch; None if they are the whole batch.

        Returns:
            The mean loss in nats per token, without the weight, and the detached final state.
        """
        loss, after = self.record(
            ids,
            targets,
            state,
            recurrent_gradient_scale=recurrent_gradient_scale,
            weight=weight,
            rows=rows,
        )
        return float(loss), after

    @torch.enable_grad()
    def record(
        self,
        ids: Tensor,
        targets: Tensor,
        state: State | None,
        *,
        recurrent_gradient_scale: float,
        weight: float,
        rows: Rows | None,
    ) -> tuple[Tensor, State]:
        """Do the same as `compute`, but return the loss as a tensor without dimensions.

        The host does not wait for the result.
        """
        loss, after = self._model.loss(
            ids, targets, state, recurrent_gradient_scale=recurrent_gradient_scale, rows=rows
        )
        self._model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss if weight == 1.0 else loss * weight)
        return loss.detach(), tuple(part.detach() for part in after)


class StepBuffers(NamedTuple):
    """The tensors that the operations of a step read and write, for one batch shape.

    Attributes without a shape are tensors without dimensions.

    Attributes:
        ids, targets: (rows, T) int64.
        initial: the carried state, each tensor (L, rows, H); the step overwrites it with the final
            state.
        resets: whether the step begins with the zero state; bool.
        lr: the learning rate; fp64 on a CPU, as torch's fused kernels require, else fp32.
        new_share: weight of the new parameters in the moving average.
        nats: the loss in nats, summed over the tokens of the whole batch.
        grad_norm: the L2 norm of all gradients before clipping.
        failed: 1 if the loss or the norm is not finite, else 0; fp32.
    """

    ids: Tensor
    targets: Tensor
    initial: State
    resets: Tensor
    lr: Tensor
    new_share: Tensor
    nats: Tensor
    grad_norm: Tensor
    failed: Tensor


class AutogradEngine(Engine):
    """Engine for any model and device, in a single process; see `Engine`."""

    @classmethod
    def unsupported(
        cls, model: RecurrentLM, config: TrainingConfig, processes: Processes
    ) -> str | None:
        """Return why this engine cannot train the model, or None if it can."""
        if processes.count > 1:
            return "the autograd engine does not average over several processes"
        return None

    def __init__(
        self,
        model: RecurrentLM,
        config: TrainingConfig,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        super().__init__(model, config, processes)
        self._gradients = AutogradGradients(model)
        self._buffers: dict[tuple[int, ...], StepBuffers] = {}
        self._states: dict[int, State] = {}
        self._steps: list[tuple[StepBuffers, Batch]] = []

    def gradients(self, batch: Batch, state: State | None) -> tuple[float, State]:
        """Write every parameter's `grad`; see `Engine.gradients`."""
        ids, targets = (
            torch.from_numpy(tokens).to(self.model.device) for tokens in (batch.ids, batch.targets)
        )
        loss, after = self._record_gradients(ids, targets, state, batch)
        self._combine_gradients()
        return float(loss), after

    def step(self, batch: Batch, lr: float) -> None:
        """Execute a step; see `Engine.step`."""
        buffers = self._prepare(batch, lr)
        self._execute(buffers, batch)
        self.state, self._num_rows = buffers.initial, batch.num_rows
        self._steps.append((buffers, batch))
        self.num_updates += 1

    def synchronize(self) -> list[StepResult]:
        """Return the results of the steps since the last call; see `Engine.synchronize`."""
        results = [self._read(buffers, batch) for buffers, batch in self._steps]
        self._steps.clear()
        self.num_updates -= sum(result.failure is not None for result in results)
        return results

    def _prepare(self, batch: Batch, lr: float) -> StepBuffers:
        """Write the inputs of a step to the buffers of its batch shape, and return these."""
        rows, steps = batch.ids.shape
        buffers = self._buffers.get((rows, steps))
        if buffers is None:
            buffers = self._buffers[rows, steps] = self._new_buffers(rows, steps)
        buffers.ids.copy_(torch.from_numpy(batch.ids))
        buffers.targets.copy_(torch.from_numpy(batch.targets))
        buffers.resets.fill_(batch.reset_state)
        buffers.lr.fill_(lr)
        if self.average is not None:
            buffers.new_share.fill_(self.average.new_share(self.num_updates + 1))
        if self.state is not None and self.state is not buffers.initial:
            for initial, part in zip(buffers.initial, self.state, strict=True):
                if initial.shape == part.shape:
                    initial.copy_(part)
        return buffers

    def _new_buffers(self, rows: int, steps: int) -> StepBuffers:
        device, like = self.model.device, self.model.head_bias
        wide = torch.float32 if device.type == "mps" else torch.float64
        number = torch.zeros((), device=device)
        if rows not in self._states:
            self._states[rows] = self.model.zero_state(rows)
        return StepBuffers(
            ids=torch.zeros(rows, steps, dtype=torch.int64, device=device),
            targets=torch.zeros(rows, steps, dtype=torch.int64, device=device),
            initial=self._states[rows],
            resets=torch.zeros((), dtype=torch.bool, device=device),
            lr=number.to(torch.float64 if device.type == "cpu" else torch.float32),
            new_share=like.new_zeros(()),
            nats=number.to(wide),
            grad_norm=like.new_zeros(()),
            failed=number.clone(),
        )

    def _execute(self, buffers: StepBuffers, batch: Batch) -> None:
        """Execute the operations of a step; overridden by an engine that records them."""
        self._do_operations(buffers, batch)

    def _recorded_for(self, batch: Batch) -> Hashable:
        """Return everything that the operations depend on besides the values of tensors."""
        return batch.ids.shape, self._weight(batch), batch.gradient_scale, self._rows(batch)

    def _do_operations(self, buffers: StepBuffers, batch: Batch) -> None:
        before = tuple(
            torch.where(buffers.resets, torch.zeros_like(part), part) for part in buffers.initial
        )
        loss, after = self._record_gradients(buffers.ids, buffers.targets, before, batch)
        self._combine_gradients()
        buffers.nats.copy_(loss).mul_(batch.ids.size)
        self._combine_losses(buffers.nats)
        with torch.no_grad():
            self._update(buffers)
            for initial, part in zip(buffers.initial, after, strict=True):
                initial.copy_(torch.where(buffers.failed > 0.0, initial, part))

    def _record_gradients(
        self, ids: Tensor, targets: Tensor, state: State | None, batch: Batch
    ) -> tuple[Tensor, State]:
        return self._gradients.record(
            ids,
            targets,
            state,
            recurrent_gradient_scale=batch.gradient_scale,
            weight=self._weight(batch),
            rows=self._rows(batch),
        )

    def _combine_gradients(self) -> None:
        """Sum the gradients over the processes, in place. With one process, do nothing."""

    def _combine_losses(self, nats: Tensor) -> None:
        """Sum the losses over the processes, in place. With one process, do nothing."""

    def _update(self, buffers: StepBuffers) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        buffers.grad_norm.copy_(norm)
        is_finite = torch.isfinite(buffers.nats) & torch.isfinite(norm)
        buffers.failed.copy_(~is_finite)
        clip_finite_gradients(
            gradients, norm, max_norm=self.config.clip_norm, max_value=self.config.clip_value
        )
        apply_update(self.optimizer, buffers.lr, buffers.failed)
        if self.average is not None:
            self.average.add_unless(~is_finite, buffers.new_share)

    def _read(self, buffers: StepBuffers, batch: Batch) -> StepResult:
        nats, failure = float(buffers.nats), None
        if bool(buffers.failed):
            failure = f"the loss is {nats / batch.num_tokens}"
            if math.isfinite(nats):
                failure = describe_non_finite(self._named_parameters())
        return StepResult(nats, batch.num_tokens, float(buffers.grad_norm), failure)
