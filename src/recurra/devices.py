"""Which device computes."""

from __future__ import annotations

import torch

from recurra.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is a CUDA GPU, else Apple's, else the CPU.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise ConfigError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N, mps")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not to be had on this machine") from error
    return device
