"""A simulated GPU of the type mps: trials measure it, but it executes no operations."""

import torch

from recurra.errors import ConfigError
from recurra.training import context, device_choice
from recurra.training.trials import SpeedTrial

CPU, GPU = torch.device("cpu"), torch.device("mps")


def simulate_gpu(monkeypatch, speeds):
    """Let this machine seem to have a GPU, and trials return `speeds` by the type of the device."""

    def choose(name, *_):
        if name not in ("auto", "mps", "cpu"):
            raise ConfigError(f"device {name!r} is not available")
        return CPU if name == "cpu" else GPU

    class Trial(SpeedTrial):
        def __call__(self, config):
            return speeds[self._processes.device.type]

    monkeypatch.setattr(context, "choose_device", choose)
    monkeypatch.setattr(device_choice, "SpeedTrial", Trial)
