"""Exponential moving average (EMA) of the weights, used for validation and saved as the model.

Near the end of a training the weights wander around what they are about to find; their mean lies
closer to it (Polyak and Juditsky 1992). Here the mean forgets exponentially:
a_n = d a_{n-1} + (1 - d) w_n, with d = min(decay, (1 + n) / (10 + n)) after n updates, so that the
first weights are soon forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Of one model.

    Attributes:
        tensors: the averages, by the parameters' names; a checkpoint holds them.

    Args:
        model: on its device already.
        decay: 0 <= decay < 1, share of the average that an update leaves.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._parameters: list[Tensor] = list(model.parameters())
        self._decay = decay

    @torch.no_grad()
    def add(self, num_updates: int) -> None:
        """Take in the weights as they are after so many updates."""
        decay = min(self._decay, (1 + num_updates) / (10 + num_updates))
        torch._foreach_lerp_(self._averages(), self._parameters, 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages while this lasts, and its own weights again afterwards."""
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
