"""Exponential moving average (EMA) of the weights, used for validation and saved as the model.

Near the end of training the weights fluctuate around a minimum, and their mean is closer to it
(Polyak and Juditsky 1992). After n updates the average is a_n = d a_{n-1} + (1 - d) w_n with
d = min(decay, (1 + n) / (10 + n)). The smaller d at the start removes the initial weights from the
average after a few updates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of the weights of one model.

    Attributes:
        tensors: the average of each parameter, by the parameter's name.

    Args:
        model: the model, already on its device.
        decay: maximum weight of the previous average, 0 <= decay < 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._parameters: list[Tensor] = list(model.parameters())
        self._decay = decay

    def new_share(self, num_updates: int) -> float:
        """Return 1 - d, the weight of the current parameters in the average."""
        return 1.0 - min(self._decay, (1 + num_updates) / (10 + num_updates))

    @torch.no_grad()
    def add(self, num_updates: int) -> None:
        """Include the current parameters in the average.

        Args:
            num_updates: number of updates so far, including the latest.
        """
        torch._foreach_lerp_(self._averages(), self._parameters, self.new_share(num_updates))

    @torch.no_grad()
    def add_unless(self, failed: Tensor, num_updates: Tensor) -> None:
        """Include the current parameters in the average unless `failed` is true.

        The host does not read the values of the arguments.

        Args:
            failed: zero-dimensional bool tensor on the device of the parameters.
            num_updates: as in `add`, but a zero-dimensional tensor on the same device; fp64 unless
                the device lacks it.
        """
        decay = ((1.0 + num_updates) / (10.0 + num_updates)).clamp(max=self._decay)
        share = (1.0 - decay).to(self._parameters[0].dtype)
        for average, parameter in zip(self._averages(), self._parameters, strict=True):
            average.copy_(torch.where(failed, average, torch.lerp(average, parameter, share)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the parameters and their averages until the context ends."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, average in zip(self._parameters, self._averages(), strict=True):
            held = parameter.clone()
            parameter.copy_(average)
            average.copy_(held)

    def _averages(self) -> list[Tensor]:
        return list(self.tensors.values())
