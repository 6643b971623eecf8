"""The table of optimizers: one row each, read by configuration, training and checkpoints.

A new optimizer is a class with torch's interface in a new module, and one row here. Nothing
is imported until the optimizer is built.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerSpec:
    """What the rest of the package must know of an optimizer.

    Attributes:
        constructor: where its class is, as `module:Class`. The class takes parameter groups with
            their `weight_decay`, `lr`, and where `is_torch` says so `fused`.
        options: fields of `TrainingConfig` that the class takes too.
        slots: tensors that it keeps for each parameter, of the parameter's shape.
        slots_need: the option that must not be zero for the slots to exist.
        counts_steps: whether it keeps a number `step`, fp32 without dimensions, per parameter.
        decouples_weight_decay: whether weight decay bypasses the gradient.
        kernel_rule: enumerator of `Rule` in kernels/source/kernels.h; None without a kernel.
        is_torch: whether it is a class of torch, which has fused kernels.
        default_lr, default_clip_norm: what the recipe takes; None stands for the cell's own
            learning rate, and for the recipe's threshold.
    """

    constructor: str
    options: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    slots_need: str | None = None
    counts_steps: bool = False
    decouples_weight_decay: bool = False
    kernel_rule: str | None = None
    is_torch: bool = False
    default_lr: float | None = None
    default_clip_norm: float | None = None

    def slots_with(self, options: object) -> tuple[str, ...]:
        """Return the slots that exist with the options of a `TrainingConfig`."""
        is_needed = self.slots_need is None or bool(getattr(options, self.slots_need))
        return self.slots if is_needed else ()


_ADAM_SLOTS = ("exp_avg", "exp_avg_sq")

OPTIMIZERS: dict[str, OptimizerSpec] = {
    "sgd": OptimizerSpec(
        "torch.optim:SGD",
        options=("momentum",),
        slots=("momentum_buffer",),
        slots_need="momentum",
        kernel_rule="kSgd",
        is_torch=True,
        # The values of d2l.
        default_lr=1.0,
        default_clip_norm=1.0,
    ),
    "adam": OptimizerSpec(
        "torch.optim:Adam",
        slots=_ADAM_SLOTS,
        counts_steps=True,
        kernel_rule="kAdam",
        is_torch=True,
    ),
    "adamw": OptimizerSpec(
        "torch.optim:AdamW",
        slots=_ADAM_SLOTS,
        counts_steps=True,
        decouples_weight_decay=True,
        kernel_rule="kAdamW",
        is_torch=True,
    ),
}
"""Every optimizer by its name in `TrainingConfig.optimizer`."""
