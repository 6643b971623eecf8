"""Fixtures that several rooms use."""

import signal

import pytest
import torch

from recurra.training.interruption import SIGNALS


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


@pytest.fixture(autouse=True, scope="session")
def _no_signal_is_ignored() -> None:
    """nohup, and a shell that starts the tests in the background, ignore signals for all children;
    the trainings that are sent some would go on for ever."""
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            is_ctrl_c = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)
