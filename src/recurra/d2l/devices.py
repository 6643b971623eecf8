"""Device functions of the book (sections 5.6 and 6.7); CUDA only, as in the book."""

from __future__ import annotations

import torch

from recurra import d2l


def cpu() -> torch.device:
    """Return the CPU.

    Examples:
        >>> from recurra import d2l
        >>> d2l.cpu()
        device(type='cpu')
    """
    return torch.device("cpu")


def gpu(i: int = 0) -> torch.device:
    """Return `cuda:i`, whether or not that GPU exists.

    Examples:
        >>> from recurra import d2l
        >>> d2l.gpu(1)
        device(type='cuda', index=1)
    """
    return torch.device(f"cuda:{i}")


def num_gpus() -> int:
    """Return the number of GPUs.

    Examples:
        >>> from recurra import d2l
        >>> d2l.num_gpus() >= 0
        True
    """
    return torch.cuda.device_count()


def try_gpu(i: int = 0) -> torch.device:
    """Return `cuda:i` if that GPU exists, otherwise the CPU.

    Examples:
        >>> from recurra import d2l
        >>> d2l.try_gpu().type in ("cuda", "cpu")
        True
        >>> d2l.try_gpu(1000)
        device(type='cpu')
    """
    return d2l.gpu(i) if d2l.num_gpus() > i else d2l.cpu()


def try_all_gpus() -> list[torch.device]:
    """Return a list of all GPUs, or a list with the CPU if there are none.

    Examples:
        >>> from recurra import d2l
        >>> d2l.try_all_gpus()[0] == d2l.try_gpu()
        True
    """
    return [d2l.gpu(i) for i in range(d2l.num_gpus())] or [d2l.cpu()]
