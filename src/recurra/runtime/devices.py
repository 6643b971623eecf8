"""Select a device and a number of threads, and name devices and processors."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from recurra.errors import ConfigError


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device of this name; `auto` is a CUDA GPU, or else Apple's GPU, or else the CPU.

    Args:
        name: auto, cpu, cuda, cuda:N or mps.
        local_rank: the number of this process among those on this machine; with `auto` and `cuda`,
            each process has a separate GPU.

    Raises:
        ConfigError: the device is not available.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return choose_device("cuda", local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" and local_rank else name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise ConfigError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N, mps")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not available on this machine") from error
    return device


@contextmanager
def num_threads(count: int | None) -> Iterator[None]:
    """Let torch and the kernels use this many threads in the block; None keeps torch's number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_name(device: torch.device) -> str:
    """Return the name of a device: the model of a GPU, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def processor_name() -> str:
    """Return the model of the processor and the instruction set that torch uses on it."""
    name = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.is_file():
        found = re.search(r"^model name\s*: (.*)$", described.read_text(), re.MULTILINE)
        name = found[1] if found else name
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
