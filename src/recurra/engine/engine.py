"""The interface of engines, and the state that every engine has.

An engine executes training steps of one model on one device. It knows neither budget nor schedule
nor files; the training loop knows no engine but through this interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, NamedTuple

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
    """What a step computed.

    Attributes:
        nats: the loss summed over the targets of the whole batch.
        num_tokens: targets of the whole batch.
        grad_norm: the L2 norm of all gradients before clipping.
        failure: why the step changed nothing, or None: its loss or a gradient is NaN or infinite.
    """

    nats: float
    num_tokens: int
    grad_norm: float
    failure: str | None = None

    @property
    def loss(self) -> float:
        """Mean nats per token."""
        return self.nats / self.num_tokens


class Engine(ABC):
    """Executes the training steps of one model.

    Constructing an engine draws no random number. A step whose loss or gradient is NaN or infinite
    changes neither weights nor optimizer, averages or hidden state, and its result says so.

    Attributes:
        model: the model; its parameters are updated in place.
        optimizer: torch's optimizer, whose state every engine uses.
        state: what the next step begins with, each tensor (L, own rows, H); None before the first.
        num_updates: updates so far.
        max_pending: steps that may be called before `synchronize` must be; 1 where a step returns
            when it is done.

    Args:
        model: a model for which `unsupported` returns None, already on its device.
        config: optimizer, clipping and weight averaging.
        processes: the processes that share each batch.
    """

    max_pending: ClassVar[int] = 1

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
        """Write every parameter's `grad` and update nothing.

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
        """Compute gradients, clip, update weights and averages, and carry the state.

        The result is returned by `synchronize`, which must be called after `max_pending` steps at
        the latest.

        Raises:
            LostProcessError: another process has ended.
        """

    @abstractmethod
    def synchronize(self) -> list[StepResult]:
        """Wait for the steps since the last call, and return their results in order."""

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Give the model its averaged weights, if there are any, until the context ends."""
        return nullcontext() if self.average is None else self.average.in_place()

    def state_dict(self) -> Tensors:
        """Return everything that an exact resume needs, with the hidden state of all processes.

        Every process must call it.
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
            num_rows: rows of the whole batch; None before the first update, when neither the
                optimizer nor the hidden state has tensors.
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
            tensors: they have the `state_specs`.

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
        """Return the factor of this process's mean loss: its share of the rows, times the batch's
        own weight. The sum over the processes is the mean over the batch."""
        return batch.loss_weight * (len(batch.ids) / batch.num_rows)

    def _rows(self, batch: Batch) -> Rows | None:
        """Return which rows of the batch are here, or None for all of them."""
        return None if len(batch.ids) == batch.num_rows else Rows(batch.rows, batch.num_rows)

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
