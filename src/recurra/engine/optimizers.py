"""Build an optimizer from its row in `config/optimizers.py`, and apply its update on a device."""

from __future__ import annotations

from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor

from recurra.config import TrainingConfig
from recurra.config.checks import require_new_name
from recurra.config.optimizers import OPTIMIZERS, OptimizerSpec
from recurra.errors import ConfigError
from recurra.model.recurrent_lm import RecurrentLM

Optimizer = torch.optim.Optimizer
AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)

_BUILT_IN = frozenset(OPTIMIZERS)


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
    options: dict[str, Any] = {option: getattr(config, option) for option in spec.options}
    if spec.is_torch:
        options["fused"] = model.device.type in ("cpu", "cuda")
        if spec.counts_steps and model.device.type == "cuda":
            # Adam can be recorded as a CUDA graph only with this option.
            options["capturable"] = True
    optimizer: Optimizer = _class_of(spec)(groups, lr=config.lr, **options)
    return optimizer


def _class_of(spec: OptimizerSpec) -> Any:
    if isinstance(spec.constructor, type):
        return spec.constructor
    module, _, name = spec.constructor.partition(":")
    return getattr(import_module(module), name)


def register_optimizer(
    optimizer: type[AnyOptimizer], *, name: str, **properties: Any
) -> type[AnyOptimizer]:
    """Make an optimizer available as `recurra.train(optimizer=name)`, in the current process.

    The class takes parameter groups with `weight_decay`, and the argument `lr`. Registering a name
    again replaces the optimizer, unless it is one of recurra's own. Before a run with the optimizer
    is loaded or resumed, the optimizer must be registered.

    Args:
        optimizer: a subclass of `torch.optim.Optimizer`.
        name: the name in `TrainingConfig.optimizer` and in `config.json`.
        properties: fields of `config.optimizers.OptimizerSpec`, above all `slots`: the names of the
            tensors in the state of a parameter, which are saved in checkpoints; `counts_steps` if
            the state also contains `step`; and `options`: the fields of `TrainingConfig` that the
            class takes.

    Returns:
        The class.

    Raises:
        ConfigError: the name or a property is invalid, or the state of the optimizer after a step
            has other tensors than those of `slots` and `counts_steps`.

    Examples:
        >>> import torch
        >>> import recurra
        >>> class SignSgd(torch.optim.Optimizer):
        ...     def __init__(self, params, lr):
        ...         super().__init__(params, {"lr": lr, "weight_decay": 0.0})
        ...     @torch.no_grad()
        ...     def step(self, closure=None):
        ...         for group in self.param_groups:
        ...             for parameter in group["params"]:
        ...                 parameter -= group["lr"] * parameter.grad.sign()
        >>> _ = recurra.register_optimizer(SignSgd, name="sign-sgd")
        >>> lm = recurra.train(optimizer="sign-sgd", lr=1e-3, hidden_size=8, steps=5)
        >>> lm.config.training.optimizer
        'sign-sgd'
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
        raise ConfigError(f"{optimizer!r} is not a subclass of torch.optim.Optimizer")
    require_new_name("optimizer", name, _BUILT_IN)
    try:
        spec = OptimizerSpec(optimizer, **properties)
    except TypeError as error:
        raise ConfigError(f"the optimizer {name} cannot be registered: {error}") from error
    _check_state(name, spec)
    OPTIMIZERS[name] = spec
    return optimizer


def _check_state(name: str, spec: OptimizerSpec) -> None:
    """Compute one step, and check that the declared state is that of the optimizer.

    Otherwise, a checkpoint would not contain the whole state.

    Raises:
        ConfigError: the step fails, or the state has other tensors.
    """
    config = TrainingConfig()
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2)
    groups = [{"params": [parameter], "weight_decay": 0.0}]
    try:
        options = {option: getattr(config, option) for option in spec.options}
        built = _class_of(spec)(groups, lr=config.lr, **options)
        built.step()
    except Exception as error:
        raise ConfigError(f"a step of the optimizer {name} failed: {error}") from error
    found = {key for key, value in built.state[parameter].items() if value is not None}
    declared = {*spec.slots_with(config), *(["step"] if spec.counts_steps else [])}
    if found != declared:
        raise ConfigError(
            f"the state of the optimizer {name} has {', '.join(sorted(found)) or 'no tensors'}, but"
            f" slots and counts_steps declare {', '.join(sorted(declared)) or 'none'}"
        )


def supports_recording(config: TrainingConfig) -> bool:
    """Return whether the update of the configured optimizer can be recorded in a graph."""
    spec = OPTIMIZERS[config.optimizer]
    return spec.is_torch or bool(getattr(_class_of(spec), "_step_supports_amp_scaling", False))


def is_capturable(optimizer: Optimizer) -> bool:
    """Return whether the optimizer reads the learning rate and `found_inf` on the device.

    torch's fused optimizers do. Other optimizers declare it by the same attribute,
    `_step_supports_amp_scaling`.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def apply_update(optimizer: Optimizer, lr: Tensor, failed: Tensor) -> None:
    """Update all parameters, or none if `failed` is 1.

    Args:
        optimizer: the optimizer of the parameters, whose gradients are already clipped.
        lr: the learning rate, a zero-dimensional tensor.
        failed: 0 or 1, a zero-dimensional fp32 tensor.
    """
    if is_capturable(optimizer):
        _create_momentum(optimizer)
        optimizer.found_inf = failed  # type: ignore[attr-defined]
        _set_lr(optimizer, lr)
        optimizer.step()
    elif not bool(failed):
        _set_lr(optimizer, float(lr))
        optimizer.step()


def _create_momentum(optimizer: Optimizer) -> None:
    """Create missing momentum buffers of torch's SGD, with zeros.

    torch's first step creates them by `torch.empty_like`, and does not write to them if `found_inf`
    is 1. With buffers of zeros, the first step has the same result.
    """
    for group in optimizer.param_groups:
        if not group.get("momentum"):
            continue
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if parameter.grad is not None and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def _set_lr(optimizer: Optimizer, lr: Tensor | float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
