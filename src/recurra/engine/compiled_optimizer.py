"""Gradient clipping and parameter update in one pass, by the compiled kernels.

Does what torch.optim's SGD, Adam and AdamW do, on their own state, in the same form: a checkpoint
does not show which of the two made the update.
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
    """Update the parameters of one optimizer, all fp32 on a CPU.

    Args:
        optimizer: torch's optimizer; its groups and its state are used and kept.
        spec: its row in the table of optimizers; `kernel_rule` is not None.
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
        """The L2 norm of all gradients; NaN or infinite where one is not finite."""
        norm: float = library.load().recurra_gradient_norm(byref(self._describe()))
        return norm

    def step(self, lr: float, factor: float) -> None:
        """Update all parameters with `factor` times their gradients."""
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
        # What was made from the weights as they were (packed for generation, say) must know.
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
        """Return an array of addresses, which is reused while no address changes."""
        addresses = [tensor.data_ptr() for tensor in tensors]
        known, array = self._addresses.get(name, ([], None))
        if known != addresses:
            array = (ctypes.c_void_p * len(tensors))(*map(library.pointer, tensors))
            self._addresses[name] = addresses, array
        return array
