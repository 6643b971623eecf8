"""The interface of engines, and the state that every engine has.

An engine executes training steps of one model on one device. It is independent of budgets,
learning rate schedules and files. The training loop uses engines only through this interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from recurra.config import TrainingConfig
from recurra.config.optimizers import OPTIMIZERS
from recurra.data.batches import Batch
from recurra.engine.averaging import WeightAverage
from recurra.engine.generators import generator_specs, generator_states, set_generator_states
from recurra.engine.optimizers import build_optimizer
from recurra.io.tensors import Tensors, TensorSpec
from recurra.model.recurrent_lm import RecurrentLM, parameter_specs
from recurra.recurrence.cells import State, find_cell
from recurra.recurrence.dropout import Rows
from recurra.runtime.distributed import SINGLE_PROCESS, Processes


class StepResult(NamedTuple):
    """The result of a training step.

    Attributes:
        nats: the loss in nats, summed over the targets of the whole batch.
        num_tokens: number of targets in the whole batch.
        grad_norm: the L2 norm of all gradients before clipping.
        failure: if the loss or a gradient is NaN or infinite, a message that says which; such a
            step changes nothing. None otherwise.
        skipped: whether the scaled gradients of fp16 overflowed. Such a step only reduces the loss
            scale; `grad_norm` is not finite, and `failure` is None.
    """

    nats: float
    num_tokens: int
    grad_norm: float
    failure: str | None = None
    skipped: bool = False

    @property
    def loss(self) -> float:
        """The mean loss in nats per token."""
        return self.nats / self.num_tokens


class Engine(ABC):
    """Executes the training steps of one model.

    The constructor draws no random numbers. If the loss or a gradient of a step is NaN or infinite,
    the step changes neither weights, averages, optimizer state nor hidden state, and `failure` of
    its `StepResult` is set.

    Attributes:
        model: the model; its parameters are updated in place.
        optimizer: torch's optimizer, whose state every engine uses.
        average: the moving average of the weights, or None.
        state: the initial hidden state of the next step, each tensor (L, own rows, H), where own
            rows are those of this process; None before the first step.
        num_updates: number of updates so far.
        max_pending: maximum number of steps between two calls of `synchronize`; 1 if `step` returns
            only after the step is done.

    Args:
        model: a model for which `unsupported` returns None, already on its device.
        config: optimizer, clipping and weight averaging.
        processes: the processes that share each batch.
    """

    max_pending: int = 1

    def __init__(
        self,
        model: RecurrentLM,
        config: TrainingConfig,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.model, self.config, self.processes = model, config, processes
        self.optimizer = build_optimizer(model, config)
        decay = config.weight_averaging
        self.average = WeightAverage(model, decay) if decay > 0.0 else None
        self.state: State | None = None
        self.num_updates = 0
        self._num_rows = 0

    @classmethod
    @abstractmethod
    def unsupported(
        cls, model: RecurrentLM, config: TrainingConfig, processes: Processes
    ) -> str | None:
        """Return why this engine cannot train the model, or None if it can."""

    @abstractmethod
    def gradients(self, batch: Batch, state: State | None) -> tuple[float, State]:
        """Write every parameter's `grad`, without an update.

        Args:
            batch: the batch; its `reset_state` is ignored.
            state: the state before the batch, each tensor (L, own rows, H); None is zero.

        Returns:
            The mean loss of this process's rows in nats per token, and the detached final state.

        Raises:
            LostProcessError: another process has ended.
        """

    @abstractmethod
    def step(self, batch: Batch, lr: float) -> None:
        """Compute and clip the gradients, then update weights, averages and hidden state.

        The result is returned by `synchronize`, which must be called after at most `max_pending`
        steps.

        Args:
            batch: the rows of this process.
            lr: the learning rate.

        Raises:
            LostProcessError: another process has ended.
        """

    @abstractmethod
    def synchronize(self) -> list[StepResult]:
        """Wait for all steps since the last call, and return their results in order."""

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the model has its averaged weights, if there are any."""
        return nullcontext() if self.average is None else self.average.in_place()

    def state_dict(self) -> Tensors:
        """Return the tensors that an exact resume needs, with the hidden state of all processes.

        With several processes, all of them must call this method.

        Raises:
            LostProcessError: another process has ended.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": t for name, t in self.average.tensors.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            for name, value in slots.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        for index, part in enumerate(self.state or ()):
            tensors[f"hidden.{index}"] = self.processes.gather_streams(part, self._num_rows)
        return tensors | generator_states()

    def state_specs(self, num_rows: int | None) -> dict[str, TensorSpec]:
        """Return dtype and shape of each tensor of `state_dict`.

        Args:
            num_rows: number of rows of the whole batch; None before the first update, when neither
                the optimizer nor the hidden state has tensors.
        """
        specs = {f"model.{n}": s for n, s in parameter_specs(self.model.config).items()}
        specs |= generator_specs()
        if self.average is not None:
            specs |= {f"average.{name}": spec_of(t) for name, t in self.average.tensors.items()}
        if num_rows is None:
            return specs
        return specs | self._optimizer_specs() | self._hidden_specs(num_rows)

    def load_state_dict(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Restore what `state_dict` returned after `num_updates` updates.

        Args:
            tensors: tensors with the dtypes and shapes of `state_specs`.
            num_updates: number of updates before they were saved.

        Raises:
            ConfigError: the state of a random generator is invalid.
        """
        set_generator_states(tensors)
        self.model.load_state_dict(_below("model.", tensors))
        if self.average is not None:
            for name, average in self.average.tensors.items():
                average.copy_(tensors[f"average.{name}"])
        self._load_optimizer(_below("optimizer.", tensors))
        hidden = _below("hidden.", tensors)
        self.state = tuple(self._own_rows(hidden[str(i)]) for i in range(len(hidden))) or None
        self._num_rows = hidden["0"].shape[1] if hidden else 0
        self.num_updates = num_updates

    def _weight(self, batch: Batch) -> float:
        """Return the factor of this process's mean loss.

        It is the loss weight of the batch times this process's fraction of the rows, so that the
        sum over the processes is the weighted mean over the batch.
        """
        return batch.loss_weight * (len(batch.own_starts) / batch.num_rows)

    def _rows(self, batch: Batch) -> Rows | None:
        """Return the position of this process's rows in the batch, or None if it has all rows."""
        return None if len(batch.own_starts) == batch.num_rows else Rows(batch.rows, batch.num_rows)

    def _named_parameters(self) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.grad is not None]

    def _own_rows(self, hidden: Tensor) -> Tensor:
        rows = self.processes.share(hidden.shape[1])
        return hidden[:, rows].to(self.model.device).contiguous()

    def _optimizer_specs(self) -> dict[str, TensorSpec]:
        spec, specs = OPTIMIZERS[self.config.optimizer], {}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            for slot in spec.slots_with(self.config):
                specs[f"optimizer.{index}.{slot}"] = spec_of(parameter)
            if spec.counts_steps:
                specs[f"optimizer.{index}.step"] = TensorSpec(torch.float32, ())
        return specs

    def _hidden_specs(self, num_rows: int) -> dict[str, TensorSpec]:
        config = self.model.config
        spec = TensorSpec(torch.float32, (config.num_layers, num_rows, config.hidden_size))
        return {f"hidden.{i}": spec for i in range(find_cell(config.cell).num_states)}

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, slot = name.split(".", 1)
            slots.setdefault(int(index), {})[slot] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})


def spec_of(tensor: Tensor) -> TensorSpec:
    """Return dtype and shape of a tensor."""
    return TensorSpec(tensor.dtype, tuple(tensor.shape))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
