"""Fixtures and the test order that all test directories share."""

import os
import signal

import pytest
import torch

from recurra.report.progress import Progress
from recurra.runtime import cores
from recurra.runtime.processors import Processors
from recurra.runtime.signals import SIGNALS

LONG_FILES = (
    "test_machines.py", "test_processes.py", "test_disk.py", "test_crash.py", "test_resume.py",
    "test_builder.py", "test_signals.py", "test_streams.py", "test_golden.py", "test_variants.py",
)  # fmt: skip
"""Slow files, which start processes or damage files: the slowest first."""

TEXT = "the cat sat on the mat and the dog sat on the log. " * 40


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the slow files first, so that parallel workers finish at about the same time."""
    order = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def _devices() -> list[str]:
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
    return devices


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> str:
    """Each available device that supports float64: the CPU, and a CUDA GPU if there is one."""
    return request.param


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one thread: a second one does not speed up these small models.

    A test can use more with `torch.set_num_threads`, also more than this machine has cores.
    """
    torch.set_num_threads(1)
    unlimited = cores.Limit(1024, Processors(machine=1024, allowed=1024, cores=1024))
    monkeypatch.setattr(cores, "current_limit", lambda: unlimited)


@pytest.fixture(autouse=True, scope="session")
def _default_signal_handlers() -> None:
    """Restore the default signal handlers.

    A process that nohup or a background shell started ignores signals, and so do its children: a
    training that waits for a signal would never end.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            is_ctrl_c = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)


@pytest.fixture
def source(tmp_path):
    """A text file of 2,040 characters."""
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


class Listener(Progress):
    """Records progress messages, and sends a signal to this process after step `stop_at`."""

    def __init__(self, stop_at=None, signum=signal.SIGINT):
        self.messages, self.plans = [], []
        self._stop_at, self._signum = stop_at, signum

    def saving(self, text):
        self.messages.append(text)

    def message(self, text):
        self.messages.append(text)

    def plan(self, lines):
        self.plans += lines

    def step(self, metrics):
        if metrics.step == self._stop_at:
            os.kill(os.getpid(), self._signum)


@pytest.fixture
def listener():
    """The class `Listener`."""
    return Listener
