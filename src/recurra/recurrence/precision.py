"""Precision: the number format of the operands of matrix products.

Sums, states, gradients and weights stay in the dtype of the parameters. fp32 means fp32: by default
torch lets cuDNN round the operands of recurrent layers to TF32, which keeps 10 of the 23 bits of an
fp32 fraction. That setting is global; it is changed around each forward pass and each backward node
of cuDNN, and restored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from recurra.config.backends import OPERAND_DTYPES
from recurra.errors import ConfigError


@dataclass(frozen=True)
class Precision:
    """A number format for the operands of matrix products.

    Attributes:
        name: the name in `ModelConfig.precision`.
        operand_dtype: the dtype that operands are rounded to; None leaves them unchanged.
    """

    name: str
    operand_dtype: torch.dtype | None
    loss_scale: float | None = None

    def product_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of the operands of products of tensors of a dtype."""
        return dtype if self.operand_dtype is None else self.operand_dtype


PRECISIONS = {
    name: Precision(name, None if dtype is None else getattr(torch, dtype))
    for name, dtype in OPERAND_DTYPES.items()
}
"""Every precision of `config/backends.py` by its name."""
FP32, BF16 = PRECISIONS["fp32"], PRECISIONS["bf16"]


def find_precision(name: str) -> Precision:
    """Return the precision of this name.

    Raises:
        ConfigError: the name is unknown; the message lists the available names.
    """
    if name not in PRECISIONS:
        raise ConfigError(f"unknown precision {name!r}; choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def autocast_precision(weight: Tensor) -> Precision:
    """Return the precision that autocast selects for the products of a weight."""
    device = weight.device.type
    if weight.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return FP32
    return BF16 if torch.get_autocast_dtype(device) == BF16.operand_dtype else FP32


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return left right': (..., k) and (n, k) to (..., n), in their own dtype.

    `dtype` is that of the operands. torch's own product in it would round the result as well; on a
    CPU the rounded operands are therefore multiplied in fp32, which loses nothing more.
    """
    if dtype == left.dtype:
        return linear(left, right)
    left_rounded, right_rounded = left.to(dtype), right.to(dtype)
    if left.device.type == "cpu":
        return linear(left_rounded.to(left.dtype), right_rounded.to(left.dtype))
    return linear(left_rounded, right_rounded).to(left.dtype)


@contextmanager
def full_precision_rnn() -> Iterator[None]:
    """Compute cuDNN's recurrent layers in fp32 inside the context.

    Sets `torch.backends.cudnn.rnn.fp32_precision`, which takes precedence over the older
    `torch.backends.cudnn.allow_tf32`.
    """
    settings: Any = torch.backends.cudnn.rnn
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def full_precision_backward(outputs: Tensor) -> None:
    """Make the backward pass of the cuDNN call that returned `outputs` compute in fp32 too."""
    node = outputs.grad_fn
    if node is None:
        return
    contexts: list[AbstractContextManager[None]] = []

    def enter(_: tuple[Tensor | None, ...]) -> None:
        contexts.append(full_precision_rnn())
        contexts[-1].__enter__()

    def leave(*_: tuple[Tensor | None, ...]) -> None:
        contexts.pop().__exit__(None, None, None)

    node.register_prehook(enter)
    node.register_hook(leave)
