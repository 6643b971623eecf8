"""The context of a training run: progress display, clock, processes and stop signals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from recurra.config import ModelConfig, RunConfig
from recurra.kernels import library
from recurra.recurrence.backends import Requirements, find_backend, require_backend
from recurra.recurrence.cells import find_cell
from recurra.recurrence.precision import find_precision
from recurra.report.curve import require_matplotlib
from recurra.report.progress import Progress
from recurra.runtime import cores
from recurra.runtime.clock import Clock
from recurra.runtime.devices import choose_device, num_threads
from recurra.runtime.distributed import (
    CPU,
    Processes,
    joined_processes,
    local_count,
    local_rank,
)
from recurra.runtime.openmp import limited_spinning
from recurra.runtime.signals import StopSignals, stop_signals


@dataclass(frozen=True)
class RunContext:
    """The resources of a run that are not part of its state.

    Attributes:
        progress: receives training events.
        clock: measures the time of the run.
        processes: the processes that train together.
        signals: the pending stop signals.
    """

    progress: Progress
    clock: Clock
    processes: Processes
    signals: StopSignals

    def on(self, device: str) -> RunContext:
        """Return a context that differs only in its device.

        Args:
            device: cpu, cuda, cuda:N or mps; `auto` leaves the device unchanged.

        Raises:
            ConfigError: the device is not available.
        """
        if device == "auto":
            return self
        chosen = choose_device(device, local_rank())
        return replace(self, processes=replace(self.processes, device=chosen))


@contextmanager
def open_context(config: RunConfig, progress: Progress, clock: Clock) -> Iterator[RunContext]:
    """Yield the context of a run, and restore signals, threads and torch's generators after it.

    With the device `auto`, the context is on the GPU if the machine has one and the backend
    supports it. `RunContext.on` can then move it to the CPU; see `device_choice.py`.

    Raises:
        ConfigError, KernelError: the device or the backend is not available, or `plot` is set and
            matplotlib is not installed.
    """
    training = config.training
    if training.plot:
        require_matplotlib()
    device, model = _first_device(config), config.model
    require_backend(model.backend, model.cell, device, find_precision(model.precision))
    may_move = training.device == "auto" and device.type != "cpu"
    if training.threads is None and (may_move or device.type == "cpu"):
        cores.detect_again()
        cores.log_default()
    with (
        num_threads(training.threads),
        limited_spinning(),
        stop_signals() as signals,
        joined_processes(device) as processes,
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        shown = progress if processes.is_first else Progress()
        _build_kernels(config.model, CPU if may_move else device, clock)
        yield RunContext(shown, clock, processes, signals)


def _first_device(config: RunConfig) -> torch.device:
    """Return the device of a run; with `auto`, the GPU if the backend supports it."""
    name, model = config.training.device, config.model
    device = choose_device(name, local_rank(), local_count())
    if name != "auto" or device.type == "cpu" or model.backend == "auto":
        return device
    needs = Requirements(find_cell(model.cell), device, has_zoneout=model.zoneout > 0.0)
    is_supported = find_backend(model.backend).unsupported(needs) is None
    return device if is_supported else CPU


def _build_kernels(model: ModelConfig, device: torch.device, clock: Clock) -> None:
    """Build the kernels if the model can use them and they do not exist yet.

    The time does not count, because it is spent only once on a machine.
    """
    needs = Requirements(find_cell(model.cell), device, has_zoneout=model.zoneout > 0.0)
    is_chosen = model.backend in ("auto", "native")
    if is_chosen and find_backend("native").unsupported(needs) is None:
        with clock.paused():
            library.is_available()
