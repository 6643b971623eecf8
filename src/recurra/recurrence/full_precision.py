"""fp32 products of cuDNN's recurrent layers in fp32, whatever precision torch allows them.

By default torch lets cuDNN round the operands of recurrent layers to TF32, which keeps 10 of the 23
bits of an fp32 fraction. Here fp32 means fp32. The setting is torch's global one: it is changed
around each forward pass and each backward node, and restored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def full_precision_rnn() -> Iterator[None]:
    """Compute cuDNN's recurrent layers in fp32 while the context lasts.

    Sets `torch.backends.cudnn.rnn.fp32_precision`, which also holds where the program used the
    older `torch.backends.cudnn.allow_tf32`.
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
