"""The compiled engine: recorded kernel calls for the gradients, and one call for the update."""

from __future__ import annotations

import math

import torch

from recurra.config import TrainingConfig
from recurra.config.optimizers import OPTIMIZERS
from recurra.data.batches import Batch
from recurra.engine.clipping import clip_gradients, clipping_factor, describe_non_finite
from recurra.engine.compiled_gradients import CompiledGradients
from recurra.engine.compiled_optimizer import CompiledUpdate
from recurra.engine.engine import Engine, StepResult
from recurra.errors import NonFiniteError
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.cells import State
from recurra.runtime.distributed import SINGLE_PROCESS, Processes


class CompiledEngine(Engine):
    """Engine that trains on a CPU by the compiled kernels; see `Engine`."""

    @classmethod
    def unsupported(
        cls, model: RecurrentLM, config: TrainingConfig, processes: Processes
    ) -> str | None:
        """Return why this engine cannot train the model, or None if it can."""
        if processes.count > 1:
            return "the compiled training step supports a single process only"
        if (reason := CompiledGradients.unsupported(model)) is not None:
            return reason
        if OPTIMIZERS[config.optimizer].kernel_rule is None:
            return f"the compiled kernels have no update for {config.optimizer}"
        return None

    def __init__(
        self,
        model: RecurrentLM,
        config: TrainingConfig,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        super().__init__(model, config, processes)
        self._gradients = CompiledGradients(model)
        self._update = CompiledUpdate(self.optimizer, OPTIMIZERS[config.optimizer])
        self._results: list[StepResult] = []

    def gradients(self, batch: Batch, state: State | None) -> tuple[float, State]:
        """Write every parameter's `grad`; see `Engine.gradients`."""
        return self._gradients.compute(
            torch.from_numpy(batch.ids),
            torch.from_numpy(batch.targets),
            state,
            recurrent_gradient_scale=batch.gradient_scale,
            weight=self._weight(batch),
        )

    def step(self, batch: Batch, lr: float) -> None:
        """Execute a step; see `Engine.step`."""
        loss, after = self.gradients(batch, None if batch.reset_state else self.state)
        nats, norm, failure = loss * batch.targets.size, math.nan, None
        if math.isfinite(nats):
            try:
                norm = self._clip_and_update(lr)
            except NonFiniteError as error:
                failure = str(error)
        else:
            failure = f"the loss is {nats / batch.num_tokens}"
        self._results.append(StepResult(nats, batch.num_tokens, norm, failure))
        if failure is not None:
            return
        self.state, self._num_rows = after, batch.num_rows
        self.num_updates += 1
        if self.average is not None:
            self.average.add(self.num_updates)

    def synchronize(self) -> list[StepResult]:
        """Return the results of the steps since the last call; see `Engine.synchronize`."""
        results, self._results = self._results, []
        return results

    def _clip_and_update(self, lr: float) -> float:
        """Clip the gradients, update the weights, and return the L2 norm before clipping.

        Raises:
            NonFiniteError: the norm is NaN or infinite; nothing was changed.
        """
        config = self.config
        if config.clip_value is not None:
            norm = clip_gradients(
                self._named_parameters(), max_norm=config.clip_norm, max_value=config.clip_value
            )
            self._update.step(lr, 1.0)
            return norm
        norm = self._update.gradient_norm()
        if not math.isfinite(norm):
            raise NonFiniteError(describe_non_finite(self._named_parameters()))
        self._update.step(lr, clipping_factor(norm, config.clip_norm))
        return norm
