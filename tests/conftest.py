"""Fixtures that several rooms use."""

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
def _one_thread() -> None:
    """Models this small gain nothing from a second thread, and lose much on a busy machine."""
    torch.set_num_threads(1)
