"""An engine that records the operations of a step once and repeats them, as a CUDA graph does.

It represents an engine that runs asynchronously on another device. The operations are recorded
below autograd, with the tensors that they read and write. A repetition first fills everything that
the recording wrote with NaN, so that a value that is not recomputed is detected. It then calls
each operation on the same tensors and writes the results to the same memory. Results are read only
when `synchronize` is called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from recurra.data.batches import Batch
from recurra.engine.autograd import AutogradEngine, StepBuffers
from recurra.engine.engine import StepResult
from recurra.engine.optimizers import is_capturable
from recurra.recurrence import dropout

POISON = {torch.bool: True, torch.uint8: 255, torch.int64: 2**62, torch.int32: 2**30}


class Recording(TorchDispatchMode):
    """Mode that records every operation executed inside it.

    Attributes:
        operations: function, arguments, keyword arguments, results and whether gradients were
            enabled, in order of execution.
        written: results in newly allocated memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any, bool]] = []
        self.written: list[Tensor] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("the host reads a tensor during a step")
        before = {_memory(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        results = function(*args, **kwargs)
        new = [
            tensor
            for tensor in tree_flatten(results)[0]
            if isinstance(tensor, Tensor) and tensor.numel() and _memory(tensor) not in before
        ]
        if new or function._schema.is_mutable:
            # Detached, because autograd does not allow an operation to be repeated on its tensors.
            plain = tree_map_only(Tensor, torch.Tensor.detach, (args, kwargs, results))
            # Some operations save tensors for their backward pass only if gradients are enabled.
            self.operations.append((function, *plain, torch.is_grad_enabled()))
        self.written += [tensor.detach() for tensor in new]
        return results

    def poison(self) -> None:
        """Overwrite the results of all recorded operations, floating-point ones with NaN."""
        for tensor in self.written:
            tensor.fill_(POISON.get(tensor.dtype, float("nan")))

    def repeat(self) -> None:
        """Execute the operations again on the same tensors."""
        for function, args, kwargs, recorded, grad_enabled in self.operations:
            with torch.set_grad_enabled(grad_enabled):
                results = function(*args, **kwargs)
            for target, tensor in zip(
                tree_flatten(recorded)[0], tree_flatten(results)[0], strict=True
            ):
                if isinstance(target, Tensor) and _memory(target) != _memory(tensor):
                    target.copy_(tensor)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class RecordedEngine(AutogradEngine):
    """Engine that repeats recordings of `AutogradEngine` steps; see `Engine` for the methods."""

    max_pending = 5

    def __init__(self, model, config, processes=None) -> None:
        super().__init__(model, config)
        self._recordings: dict[Any, tuple[Recording, Seeds]] = {}
        self._copies: list[tuple[StepBuffers, Batch]] = []
        self.num_recorded, self.num_repeated = 0, 0

    @classmethod
    def unsupported(cls, model, config, processes):
        """Return why this engine cannot train the model, or None if it can."""
        if model.backend == "native":
            return "calls of the compiled kernels cannot be recorded"
        return super().unsupported(model, config, processes)

    def step(self, batch: Batch, lr: float) -> None:
        super().step(batch, lr)
        # The next step overwrites the buffers, so the results are copied on the device.
        buffers, batch = self._steps.pop()
        copies = {name: getattr(buffers, name).clone() for name in ("nats", "grad_norm", "failed")}
        self._copies.append((buffers._replace(**copies), batch))

    def synchronize(self) -> list[StepResult]:
        self._steps, self._copies = self._copies, []
        return super().synchronize()

    def _execute(self, buffers: StepBuffers, batch: Batch) -> None:
        # The first update creates the optimizer's state, so it cannot be repeated.
        if not self.optimizer.state and is_capturable(self.optimizer):
            self._do_operations(buffers, batch)
            return
        key = self._recorded_for(batch)
        if key not in self._recordings:
            seeds = Seeds()
            with dropout.seeds_from(seeds.draw_first), Recording() as recording:
                self._do_operations(buffers, batch)
            self._recordings[key] = recording, seeds
            self.num_recorded += 1
            return
        recording, seeds = self._recordings[key]
        recording.poison()
        seeds.draw_again()
        recording.repeat()
        self.num_repeated += 1


class Seeds:
    """Seeds of dropout masks, stored in tensors that a recording reads."""

    def __init__(self) -> None:
        self._seeds: list[Tensor] = []

    def draw_first(self) -> Tensor:
        """Draw a seed in the way of `dropout`, and return it in a new tensor."""
        with torch.utils._python_dispatch._disable_current_modes():
            self._seeds.append(torch.randint(2**63 - 1, ()))
        return self._seeds[-1]

    def draw_again(self) -> None:
        """Draw all seeds again, in the same order, into the same tensors."""
        for seed in self._seeds:
            seed.copy_(torch.randint(2**63 - 1, ()))
