"""Device functions of the book (section 5.6); CUDA only, as in the book."""

from __future__ import annotations

import torch


def try_gpu(i: int = 0) -> torch.device:
    """Return `cuda:i` if that GPU exists, otherwise the CPU.

    Examples:
        >>> from recurra import d2l
        >>> d2l.try_gpu().type in ("cuda", "cpu")
        True
        >>> d2l.try_gpu(1000)
        device(type='cpu')
    """
    return torch.device(f"cuda:{i}" if torch.cuda.device_count() > i else "cpu")


def try_all_gpus() -> list[torch.device]:
    """Return a list of all GPUs, or a list with the CPU if there are none.

    Examples:
        >>> from recurra import d2l
        >>> d2l.try_all_gpus()[0] == d2l.try_gpu()
        True
    """
    count = torch.cuda.device_count()
    return [torch.device(f"cuda:{i}") for i in range(count)] or [torch.device("cpu")]
