"""The reference engine: gradients by autograd, updates by torch's optimizers.

A step is a fixed sequence of tensor operations on buffers that keep their addresses, and the host
reads none of their values during a step. A CUDA graph can therefore capture the operations, see
`graph.py`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from recurra.config import TrainingConfig
from recurra.data.batches import Batch
from recurra.engine.clipping import (
    clip_finite_gradients,
    describe_non_finite,
    gradient_norms,
)
from recurra.engine.engine import Engine, StepResult
from recurra.engine.gradient_sum import GradientSum
from recurra.engine.loss_scaling import LossScale
from recurra.engine.optimizers import apply_update
from recurra.io.tensors import Tensors, TensorSpec
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
        loss, after = self.forward_backward(
            ids,
            targets,
            state,
            recurrent_gradient_scale=recurrent_gradient_scale,
            weight=weight,
            rows=rows,
        )
        return float(loss), after

    @torch.enable_grad()
    def forward_backward(
        self,
        ids: Tensor,
        targets: Tensor,
        state: State | None,
        *,
        recurrent_gradient_scale: float,
        weight: float,
        rows: Rows | None,
        scale: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Do the same as `compute`, but return the loss as a zero-dimensional tensor.

        The host does not wait for the device. If `scale`, a zero-dimensional tensor, is given, the
        loss is also multiplied by it before the backward pass.
        """
        # The backward pass of the output layer also runs in this context, because torch's settings
        # for fp32 products apply when a product is computed.
        with self._model.precision.products(self._model.device):
            loss, after = self._model.loss(
                ids, targets, state, recurrent_gradient_scale=recurrent_gradient_scale, rows=rows
            )
            self._model.zero_grad(set_to_none=True)
            weighted = loss if weight == 1.0 else loss * weight
            torch.autograd.backward(weighted if scale is None else weighted * scale)
        return loss.detach(), tuple(part.detach() for part in after)


class StepBuffers(NamedTuple):
    """The tensors that the operations of a step read and write, for one batch shape.

    Attributes without a shape are zero-dimensional tensors.

    Attributes:
        ids, targets: (rows, T) int64.
        initial: the carried state, each tensor (L, rows, H); the step overwrites it with the final
            state.
        resets: bool, whether the step begins with the zero state.
        lr: the learning rate; fp64 on a CPU, as torch's fused kernels require, else fp32.
        nats: the loss in nats, summed over the tokens of the whole batch.
        grad_norm: the L2 norm of all gradients before clipping.
        failed: fp32, 1 if the loss or the norm is not finite and the step must therefore change
            nothing, else 0.
        overflowed: fp32, 1 if the step failed only because the loss scale is too large, else 0.
    """

    ids: Tensor
    targets: Tensor
    initial: State
    resets: Tensor
    lr: Tensor
    nats: Tensor
    grad_norm: Tensor
    failed: Tensor
    overflowed: Tensor


class AutogradEngine(Engine):
    """Engine for any model, device and number of processes; see `Engine`."""

    @classmethod
    def unsupported(
        cls, model: RecurrentLM, config: TrainingConfig, processes: Processes
    ) -> str | None:
        """Return None: every training is supported."""
        return None

    def __init__(
        self,
        model: RecurrentLM,
        config: TrainingConfig,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        super().__init__(model, config, processes)
        self._gradients = AutogradGradients(model)
        self._sum = GradientSum(list(model.parameters()), processes)
        initial = model.precision.loss_scale
        self._loss_scale = None if initial is None else LossScale(initial, model.device)
        self._buffers: dict[tuple[int, ...], StepBuffers] = {}
        self._states: dict[int, State] = {}
        self._steps: list[tuple[StepBuffers, Batch]] = []
        # Number of updates, on the device.
        self._count = torch.zeros((), dtype=_wide(model.device), device=model.device)

    def gradients(self, batch: Batch, state: State | None) -> tuple[float, State]:
        """Write every parameter's `grad`; see `Engine.gradients`."""
        ids, targets = (
            torch.from_numpy(tokens).to(self.model.device) for tokens in (batch.ids, batch.targets)
        )
        loss, after = self._forward_backward(ids, targets, state, batch)
        self._sum.pack()
        self._sum.exchange()
        self._sum.unpack()
        return float(loss), after

    def step(self, batch: Batch, lr: float) -> None:
        """Execute a step; see `Engine.step`."""
        buffers = self._buffers_of(batch)
        self._write_inputs(buffers, batch, lr)
        self._backward(buffers, batch)
        self._exchange(buffers)
        self._update(buffers)
        self._steps.append((buffers, batch))
        self._end_step(buffers, batch)

    def synchronize(self) -> list[StepResult]:
        """Return the results of the steps since the last call; see `Engine.synchronize`."""
        results = [self._read(buffers, batch) for buffers, batch in self._steps]
        self._steps.clear()
        self._uncount(results)
        return results

    def state_dict(self) -> Tensors:
        """Return the tensors that an exact resume needs; see `Engine.state_dict`."""
        tensors = super().state_dict()
        if self._loss_scale is not None:
            tensors |= self._loss_scale.state_dict(self.num_updates)
        return tensors

    def state_specs(self, num_rows: int | None) -> dict[str, TensorSpec]:
        """Return dtype and shape of each tensor of `state_dict`; see `Engine.state_specs`."""
        specs = super().state_specs(num_rows)
        return specs if self._loss_scale is None else specs | LossScale.specs

    def load_state_dict(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Restore what `state_dict` returned; see `Engine.load_state_dict`."""
        super().load_state_dict(tensors, num_updates)
        if self._loss_scale is not None:
            # The training loop also counts steps that were skipped because of an overflow.
            self.num_updates = self._loss_scale.load_state_dict(tensors)
        self._count.fill_(self.num_updates)

    def _exchange(self, buffers: StepBuffers) -> None:
        """Sum gradients and loss over the processes, between `_backward` and `_update`."""
        self._sum.exchange()
        self.processes.sum_in_place(buffers.nats)

    def _end_step(self, buffers: StepBuffers, batch: Batch) -> None:
        """Keep the state for the next step, and count the update."""
        self.state, self._num_rows = buffers.initial, batch.num_rows
        self.num_updates += 1

    def _uncount(self, results: list[StepResult]) -> None:
        """Subtract the steps that failed or were skipped from the number of updates."""
        self.num_updates -= sum(result.failure is not None or result.skipped for result in results)

    def _buffers_of(self, batch: Batch) -> StepBuffers:
        """Return the buffers for the shape of a batch, with the carried state."""
        shape = len(batch.own_starts), batch.num_steps
        if shape not in self._buffers:
            self._buffers[shape] = self._new_buffers(*shape)
        buffers = self._buffers[shape]
        if self.state is not None and self.state is not buffers.initial:
            for initial, part in zip(buffers.initial, self.state, strict=True):
                if initial.shape == part.shape:
                    initial.copy_(part)
        return buffers

    def _write_inputs(self, buffers: StepBuffers, batch: Batch, lr: float) -> None:
        buffers.ids.copy_(torch.from_numpy(batch.ids))
        buffers.targets.copy_(torch.from_numpy(batch.targets))
        buffers.resets.fill_(batch.reset_state)
        buffers.lr.fill_(lr)

    def _new_buffers(self, rows: int, steps: int) -> StepBuffers:
        device, like = self.model.device, self.model.head_bias
        number = torch.zeros((), device=device)
        if rows not in self._states:
            self._states[rows] = self.model.zero_state(rows)
        return StepBuffers(
            ids=torch.zeros(rows, steps, dtype=torch.int64, device=device),
            targets=torch.zeros(rows, steps, dtype=torch.int64, device=device),
            initial=self._states[rows],
            resets=torch.zeros((), dtype=torch.bool, device=device),
            lr=number.to(torch.float64 if device.type == "cpu" else torch.float32),
            nats=number.to(_wide(device)),
            grad_norm=like.new_zeros(()),
            failed=number.clone(),
            overflowed=number.clone(),
        )

    def _graph_key(self, batch: Batch) -> Hashable:
        """Return everything besides the values of tensors that the operations of a step depend on.

        Steps with equal keys can replay the same graph.
        """
        rows = self._rows(batch)
        own = None if rows is None else (rows.own.start, rows.own.stop, rows.total)
        shape = len(batch.own_starts), batch.num_steps
        return shape, self._weight(batch), batch.gradient_scale, own

    def _backward(self, buffers: StepBuffers, batch: Batch) -> None:
        """Compute the loss, the gradients and the final state of this process's rows."""
        before = tuple(
            torch.where(buffers.resets, torch.zeros_like(part), part) for part in buffers.initial
        )
        scale = None if self._loss_scale is None else self._loss_scale.scale
        loss, self._after = self._forward_backward(
            buffers.ids, buffers.targets, before, batch, scale
        )
        buffers.nats.copy_(loss).mul_(batch.own_starts.size * batch.num_steps)
        self._sum.pack()

    def _forward_backward(
        self,
        ids: Tensor,
        targets: Tensor,
        state: State | None,
        batch: Batch,
        scale: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        return self._gradients.forward_backward(
            ids,
            targets,
            state,
            recurrent_gradient_scale=batch.gradient_scale,
            weight=self._weight(batch),
            rows=self._rows(batch),
            scale=scale,
        )

    @torch.no_grad()
    def _update(self, buffers: StepBuffers) -> None:
        """Clip the gradients of the whole batch; update weights, averages and the carried state."""
        self._sum.unpack()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self._loss_scale is not None:
            self._loss_scale.unscale(gradients)
        self._norms = gradient_norms(gradients)
        norm = torch.linalg.vector_norm(self._norms)
        buffers.grad_norm.copy_(norm)
        failed = ~(torch.isfinite(buffers.nats) & torch.isfinite(norm))
        buffers.failed.copy_(failed)
        clip_finite_gradients(
            gradients, norm, max_norm=self.config.clip_norm, max_value=self.config.clip_value
        )
        apply_update(self.optimizer, buffers.lr, buffers.failed)
        self._count.add_(~failed)
        if self.average is not None:
            self.average.add_unless(failed, self._count)
        for initial, part in zip(buffers.initial, self._after, strict=True):
            initial.copy_(torch.where(failed, initial, part))
        if self._loss_scale is not None:
            overflowed = self._loss_scale.overflowed(buffers.nats, norm)
            buffers.overflowed.copy_(overflowed)
            self._loss_scale.update(overflowed)

    def _read(self, buffers: StepBuffers, batch: Batch) -> StepResult:
        nats, failure = float(buffers.nats), None
        skipped = bool(buffers.overflowed)
        if bool(buffers.failed) and not skipped:
            failure = describe_loss(nats, batch)
            if math.isfinite(nats):
                failure = describe_non_finite(self._named_parameters())
        return StepResult(nats, batch.num_tokens, float(buffers.grad_norm), failure, skipped)


def describe_loss(nats: float, batch: Batch) -> str:
    """Return an error message about a loss that is not finite."""
    return f"the loss is {nats / batch.num_tokens}"


def _wide(device: torch.device) -> torch.dtype:
    """Return the dtype for sums and counts: fp64, except on mps, which lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64
