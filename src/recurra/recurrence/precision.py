"""Matrix products with operands rounded to a shorter format and fp32 accumulation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left right': (..., k) and (n, k) to (..., n), in their own dtype.

    `dtype` is that of the operands. torch's own product in it would round the result as well; on a
    CPU the rounded operands are therefore multiplied in fp32, which loses nothing more.
    """
    if dtype == left.dtype:
        return linear(left, right)
    left_rounded, right_rounded = left.to(dtype), right.to(dtype)
    if left.device.type == "cpu":
        return linear(left_rounded.to(left.dtype), right_rounded.to(left.dtype))
    return linear(left_rounded, right_rounded).to(left.dtype)
