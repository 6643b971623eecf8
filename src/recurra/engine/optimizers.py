"""Build an optimizer from its row in `config/optimizers.py`, and apply its update on a device."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from recurra.config import TrainingConfig
from recurra.config.optimizers import OPTIMIZERS
from recurra.errors import ConfigError
from recurra.model.recurrent_lm import RecurrentLM

Optimizer = torch.optim.Optimizer


def build_optimizer(model: RecurrentLM, config: TrainingConfig) -> Optimizer:
    """Return the optimizer that `config.optimizer` names, for all parameters of the model.

    Weight decay applies only to parameters with at least two dimensions, not to biases.

    Raises:
        ConfigError: `config.optimizer` is unknown.
    """
    spec = OPTIMIZERS.get(config.optimizer)
    if spec is None:
        known = ", ".join(OPTIMIZERS)
        raise ConfigError(f"unknown optimizer {config.optimizer!r}; choose one of {known}")
    groups = [
        {
            "params": [p for p in model.parameters() if p.dim() > 1],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    module, _, name = spec.constructor.partition(":")
    options: dict[str, Any] = {option: getattr(config, option) for option in spec.options}
    if spec.is_torch:
        options["fused"] = model.device.type in ("cpu", "cuda")
    optimizer: Optimizer = getattr(import_module(module), name)(groups, lr=config.lr, **options)
    return optimizer


def is_capturable(optimizer: Optimizer) -> bool:
    """Return whether the optimizer reads learning rate and `found_inf` from tensors on the device.

    torch's fused optimizers do. Other optimizers declare it by the same attribute,
    `_step_supports_amp_scaling`.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def apply_update(optimizer: Optimizer, lr: Tensor, failed: Tensor) -> None:
    """Update all parameters, or none if `failed` is 1.

    Args:
        optimizer: the optimizer of the parameters, whose gradients are already clipped.
        lr: the learning rate, without dimensions.
        failed: 0 or 1, fp32 without dimensions.
    """
    if is_capturable(optimizer):
        optimizer.found_inf = failed  # type: ignore[attr-defined]
        _set_lr(optimizer, lr)
        optimizer.step()
    elif not bool(failed):
        _set_lr(optimizer, float(lr))
        optimizer.step()


def _set_lr(optimizer: Optimizer, lr: Tensor | float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
