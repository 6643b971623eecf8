"""Table of the optimizers, for validation, training and checkpoints.

To add an optimizer, write a class with the interface of `torch.optim.Optimizer` in a new module
and add a row to `OPTIMIZERS`. The class is imported when the optimizer is built.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerSpec:
    """Properties of an optimizer that the rest of the package depends on.

    Attributes:
        constructor: the class, or its name as `module:Class`. It takes parameter groups with
            `weight_decay`, and the argument `lr`; if `is_torch` is true, also the argument `fused`.
        options: fields of `TrainingConfig` that the class takes in addition.
        slots: names of the state tensors per parameter; they have the parameter's shape.
        slots_need: the option that must be nonzero for the slots to exist, or None.
        counts_steps: whether the state of a parameter contains `step`, a zero-dimensional fp32
            tensor.
        decouples_weight_decay: whether weight decay is applied to the weights, not the gradients.
        kernel_rule: enumerator of `Rule` in kernels/source/kernels.h; None without a kernel.
        is_torch: whether the class is part of torch and has a fused implementation.
        default_lr: learning rate that the recipe chooses; None for that of the cell.
        default_clip_norm: clipping threshold that the recipe chooses; None for its own default.
    """

    constructor: str | type
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
        """Return the slots that exist for the options of a `TrainingConfig`."""
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
"""The properties of each optimizer, by its name in `TrainingConfig.optimizer`."""
