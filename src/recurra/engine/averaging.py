"""Exponential moving average (EMA) of the weights, used for validation and saved as the model.

Near the end of a training the weights fluctuate around a minimum; their mean lies closer to it
(Polyak and Juditsky 1992). The mean is exponential: a_n = d a_{n-1} + (1 - d) w_n, with
d = min(decay, (1 + n) / (10 + n)) after n updates, so that the first weights lose their influence
soon.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of the weights of one model.

    Attributes:
        tensors: the averages by the parameters' names.

    Args:
        model: the model, already on its device.
        decay: share of the average that an update keeps, 0 <= decay < 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._parameters: list[Tensor] = list(model.parameters())
        self._decay = decay

    def new_share(self, num_updates: int) -> float:
        """Return 1 - d, the share of the weights in the average after this many updates."""
        return 1.0 - min(self._decay, (1 + num_updates) / (10 + num_updates))

    @torch.no_grad()
    def add(self, num_updates: int) -> None:
        """Include the weights as they are after this many updates."""
        torch._foreach_lerp_(self._averages(), self._parameters, self.new_share(num_updates))

    @torch.no_grad()
    def add_unless(self, failed: Tensor, share: Tensor) -> None:
        """Include the weights, unless `failed` is true; nothing is read by the host.

        Args:
            failed: bool without dimensions, on the device of the weights.
            share: the share of the weights, without dimensions, on the same device.
        """
        for average, parameter in zip(self._averages(), self._parameters, strict=True):
            average.copy_(torch.where(failed, average, torch.lerp(average, parameter, share)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Exchange the model's weights for the averages until the context ends."""
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
