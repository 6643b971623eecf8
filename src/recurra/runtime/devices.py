"""Select a device and a number of threads, and name devices and processors."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from recurra.errors import ConfigError
from recurra.runtime import cores


def choose_device(name: str, local_rank: int = 0, local_count: int = 1) -> torch.device:
    """Return the device of this name.

    Training with `auto` measures whether the GPU is faster than the CPU, see
    `training/device_choice.py`.

    Args:
        name: auto, cpu, cuda, cuda:N or mps. `auto` is a GPU if there is one for every process
            (with CUDA or ROCm, else MPS for a single process), else cpu.
        local_rank: rank of this process on this machine. It is the index of the GPU for `cuda`, and
            for `auto` if CUDA is available.
        local_count: number of processes on this machine.

    Raises:
        ConfigError: `name` is none of these, or the device is not available.
    """
    if name == "auto":
        if torch.cuda.is_available() and torch.cuda.device_count() >= local_count:
            return choose_device("cuda", local_rank)
        has_mps = torch.backends.mps.is_available() and local_count == 1
        return torch.device("mps" if has_mps else "cpu")
    if re.fullmatch(r"cpu|mps|cuda(:\d+)?", name) is None:
        raise ConfigError(f"device is {name!r}; it must be one of auto, cpu, cuda, cuda:N, mps")
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" and local_rank else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = "" if device_is_supported(name) else ": this build of torch does not support it"
        raise ConfigError(
            f"device {name!r} is not available on this machine{reason}; use auto or cpu"
        ) from error
    return device


def device_is_supported(name: str) -> bool:
    """Return whether this build of torch supports devices of this type, with or without any."""
    if name.startswith("cuda"):
        return torch.version.cuda is not None or torch.version.hip is not None
    return name != "mps" or torch.backends.mps.is_built()


@contextmanager
def num_threads(count: int | None) -> Iterator[None]:
    """Let torch and the kernels use this many threads in the block.

    Args:
        count: the number of threads; None for that of an enclosing block, or else the default, see
            `cores.threads`.
    """
    if count is None:
        cores.detect_again()
        count = cores.threads()
    before = torch.get_num_threads()
    # The call slows down small operations of torch even if the number does not change, because MKL
    # then uses all threads for them.
    if count != before:
        torch.set_num_threads(count)
    try:
        with cores.use_threads(count):
            yield
    finally:
        if count != before:
            torch.set_num_threads(before)


def device_name(device: torch.device) -> str:
    """Return the product name of a CUDA GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def processor_name() -> str:
    """Return the model of the processor and the instruction set that torch uses on it."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE)
        name = match[1] if match else name
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
