"""Gradient clipping and parameter update in one pass, by the compiled kernels.

The updates are those of SGD, Adam and AdamW in torch.optim, and they read and write the state of
torch's optimizer. Checkpoints therefore have the same contents with either implementation.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import byref
from typing import Any

import torch
from torch import Tensor

from recurra.config.optimizers import OptimizerSpec
from recurra.kernels import library, structures

_RULE = structures.ENUMERATIONS["Rule"]


class CompiledUpdate:
    """The compiled update of one optimizer, whose parameters are all fp32 on a CPU.

    Args:
        optimizer: torch's optimizer; its parameter groups are read, and its state is updated.
        spec: the optimizer's row in `OPTIMIZERS`; `kernel_rule` is not None.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, spec: OptimizerSpec) -> None:
        assert spec.kernel_rule is not None
        self._optimizer, self._spec = optimizer, spec
        self._rule = _RULE[spec.kernel_rule]
        self._parameters: list[Tensor] = []
        decays: list[float] = []
        for group in optimizer.param_groups:
            self._parameters += group["params"]
            decays += [group["weight_decay"]] * len(group["params"])
        self._settings: dict[str, Any] = optimizer.param_groups[0]
        self._sizes = (ctypes.c_int64 * len(decays))(*(p.numel() for p in self._parameters))
        self._decays = (ctypes.c_float * len(decays))(*decays)
        self._addresses: dict[str, tuple[list[int], Any]] = {}

    def gradient_norm(self) -> float:
        """Return the L2 norm of all gradients together; it is NaN or infinite if a gradient is."""
        norm: float = library.load().recurra_gradient_norm(byref(self._describe()))
        return norm

    def step(self, lr: float, factor: float) -> None:
        """Update all parameters in place.

        Args:
            lr: the learning rate.
            factor: multiplies the gradients before the update.
        """
        update = self._describe()
        update.lr, update.factor = lr, factor
        is_first = not self._optimizer.state
        if self._spec.counts_steps:
            self._describe_adam(update, is_first)
        else:
            update.momentum = self._settings["momentum"]
            update.is_first = is_first
            if update.momentum:
                update.first = self._slots(self._spec.slots[0], is_first)
        library.load().recurra_update(byref(update))
        # The kernel bypasses torch's version counters. The decoder compares them to decide whether
        # its packed weights are outdated.
        torch.autograd.graph.increment_version(self._parameters)

    def _describe_adam(self, update: structures.Description, is_first: bool) -> None:
        (beta1, beta2), epsilon = self._settings["betas"], self._settings["eps"]
        first, second = self._spec.slots
        update.first = self._slots(first, is_first)
        update.second = self._slots(second, is_first)
        state = self._optimizer.state
        if is_first:
            for parameter in self._parameters:
                state[parameter]["step"] = torch.zeros(())
        steps = [state[parameter]["step"] for parameter in self._parameters]
        torch._foreach_add_(steps, 1.0)
        step = float(steps[0])
        update.beta2, update.epsilon = beta2, epsilon
        update.new_share, update.new_square_share = 1.0 - beta1, 1.0 - beta2
        update.correction = 1.0 - beta1**step
        update.root_correction = math.sqrt(1.0 - beta2**step)

    def _slots(self, name: str, is_first: bool) -> Any:
        state = self._optimizer.state
        if is_first:
            for parameter in self._parameters:
                state[parameter][name] = torch.zeros_like(parameter)
        return self._pointers(name, [state[parameter][name] for parameter in self._parameters])

    def _describe(self) -> structures.Description:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        assert len(gradients) == len(self._parameters)
        return structures.Update(
            rule=self._rule,
            threads=library.threads(),
            count=len(gradients),
            sizes=ctypes.addressof(self._sizes),
            parameters=self._pointers("parameters", self._parameters),
            gradients=self._pointers("gradients", gradients),
            decays=ctypes.addressof(self._decays),
        )

    def _pointers(self, name: str, tensors: list[Tensor]) -> Any:
        """Return an array of the tensors' addresses; it is reused while no address changes."""
        addresses = [tensor.data_ptr() for tensor in tensors]
        known, array = self._addresses.get(name, ([], None))
        if known != addresses:
            array = (ctypes.c_void_p * len(tensors))(*map(library.pointer, tensors))
            self._addresses[name] = addresses, array
        return array
