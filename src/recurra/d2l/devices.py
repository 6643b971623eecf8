"""Device functions of the book (section 5.6); CUDA only, as in the book."""

from __future__ import annotations

import torch


def try_gpu(i: int = 0) -> torch.device:
    """Return `cuda:i` if that GPU exists, otherwise the CPU."""
    return torch.device(f"cuda:{i}" if torch.cuda.device_count() > i else "cpu")


def try_all_gpus() -> list[torch.device]:
    """Return a list of all GPUs, or a list with the CPU if there are none."""
    count = torch.cuda.device_count()
    return [torch.device(f"cuda:{i}") for i in range(count)] or [torch.device("cpu")]
