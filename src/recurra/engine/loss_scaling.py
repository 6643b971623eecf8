"""Dynamic loss scaling for gradients that are computed in fp16.

The smallest positive number of fp16 is 6e-8, and many gradients are smaller. The loss is therefore
multiplied by a scale before the backward pass, and the gradients are divided by it afterwards
(Micikevicius et al. 2018, "Mixed Precision Training"). If a scaled gradient overflows, the step is
skipped and the scale is halved. After `GROWTH_INTERVAL` steps without overflow it is doubled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from recurra.io.tensors import Tensors, TensorSpec

GROWTH_INTERVAL = 2000
"""Number of steps without overflow after which the scale is doubled, as in torch's GradScaler."""
MIN_SCALE, MAX_SCALE = 1.0, 2.0**24
NAME, NUM_UPDATES = "loss_scale", "num_updates"
"""Names of the state in a checkpoint."""


class LossScale:
    """The scale of the loss. The operations of a step transfer no data to or from the host.

    Attributes:
        values: (2,) fp32, the scale and the number of steps since it changed.

    Args:
        initial: the initial scale.
        device: the device of the model.
    """

    specs: ClassVar[dict[str, TensorSpec]] = {
        NAME: TensorSpec(torch.float32, (2,)),
        NUM_UPDATES: TensorSpec(torch.int64, ()),
    }

    def __init__(self, initial: float, device: torch.device) -> None:
        self.values = torch.tensor([initial, 0.0], device=device)

    def state_dict(self, num_updates: int) -> Tensors:
        """Return the state for a checkpoint.

        Args:
            num_updates: number of updates so far, without the skipped steps.
        """
        return {NAME: self.values, NUM_UPDATES: torch.tensor(num_updates)}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> int:
        """Restore what `state_dict` returned.

        Returns:
            The number of updates before the state was saved, without the skipped steps.
        """
        self.values.copy_(tensors[NAME])
        return int(tensors[NUM_UPDATES])

    @property
    def scale(self) -> Tensor:
        """The scale, a zero-dimensional tensor."""
        return self.values[0]

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        torch._foreach_mul_(gradients, self.scale.reciprocal())

    def overflowed(self, nats: Tensor, norm: Tensor) -> Tensor:
        """Return whether a step failed only because the scale is too large.

        This is the case if the norm of the gradients is not finite, the loss is finite, and the
        scale is larger than `MIN_SCALE`.

        Args:
            nats: the loss, a zero-dimensional tensor.
            norm: the L2 norm of all gradients, a zero-dimensional tensor.

        Returns:
            A zero-dimensional bool tensor.
        """
        return torch.isfinite(nats) & ~torch.isfinite(norm) & (self.scale > MIN_SCALE)

    def update(self, overflowed: Tensor) -> None:
        """Halve the scale after an overflow, and double it after many steps without one.

        Args:
            overflowed: whether the gradients of this step overflowed, a zero-dimensional bool
                tensor.
        """
        scale, steps = self.values.unbind()
        steps = torch.where(overflowed, 0.0, steps + 1.0)
        grows = steps >= GROWTH_INTERVAL
        factor = torch.where(overflowed, 0.5, torch.where(grows, 2.0, 1.0))
        scale = (scale * factor).clamp(MIN_SCALE, MAX_SCALE)
        self.values.copy_(torch.stack([scale, torch.where(grows, 0.0, steps)]))
