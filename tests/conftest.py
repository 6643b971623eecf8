"""Fixtures that several rooms use."""

import os

import pytest
import torch


def _devices() -> list[str]:
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
    return devices


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> str:
    """Each device of this machine that computes in float64: the CPU, and a CUDA GPU if any."""
    return request.param


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))
