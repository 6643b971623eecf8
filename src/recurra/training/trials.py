"""Measure the duration of training steps on a device, with the engine that trains.

A trial trains a separate model with a learning rate of 0. It changes nothing of the run: neither
weights, averages, optimizer state and counters nor random generators.
"""

from __future__ import annotations

import copy
import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recurra.config import RunConfig
from recurra.data.batches import Batch, BatchStream, Ids
from recurra.engine.engine import Engine
from recurra.engine.select import select_engine
from recurra.errors import ConfigError, KernelError, LostProcessError, PeerError
from recurra.model.recurrent_lm import RecurrentLM
from recurra.runtime.distributed import SINGLE_PROCESS, Processes
from recurra.training.sizing import flops_per_token

MAX_TRIAL_STEPS = 512
"""Largest number of time steps of a timed batch. A batch of full BPTT can be longer; its time is
extrapolated."""
TRIAL_SECONDS, GPU_TRIAL_SECONDS = 0.2, 0.1
"""Minimum duration of the measurement in seconds, on a CPU and on a GPU. The recipe for a GPU
measures more models, and its steps are shorter."""
MAX_REPEATED_SECONDS = 1.0
"""Duration in seconds of a step from which the measurement is not repeated."""
UNTIMED_STEPS = 2
"""Number of steps that are not timed if steps are asynchronous, or on a GPU. The first step loads
libraries and allocates memory, and the second one may record a graph."""

_logger = logging.getLogger(__name__)


class TrialError(ConfigError):
    """A model cannot be trained on a device, for the reason that the message gives."""


@dataclass(frozen=True)
class SilentProcesses(Processes):
    """Processes without collectives, for a measurement in one of them.

    An engine computes this process's rows as in training, but sums nothing over the processes.
    """

    def _broadcast(self, tensor: Tensor) -> None:
        pass

    def _reduce(self, tensor: Tensor) -> None:
        pass


def seconds_per_step(
    model: RecurrentLM, stream: BatchStream, processes: Processes = SINGLE_PROCESS
) -> float:
    """Measure a training step of this process's rows with the engine that trains.

    The model and the random generators are unchanged: a copy of the model is trained. With several
    processes, the time to sum the gradients is not included, because each process repeats the
    measurement a different number of times.

    Args:
        model: the model, on its device.
        stream: the batches of the training.
        processes: the processes that share each batch.

    Returns:
        Seconds per batch.
    """
    with _restored_generators(model.device):
        return _seconds_per_step(copy.deepcopy(model), stream, processes)


class SpeedTrial:
    """Measures the speed at which this process trains a model, by a few steps of random weights.

    Args:
        ids: the training part of a text.
        processes: the processes that train together, with the device to measure. The process that
            measures computes its own rows of a batch.
    """

    def __init__(self, ids: Ids, processes: Processes) -> None:
        self._ids, self._processes = ids, processes

    def __call__(self, config: RunConfig) -> float:
        """Return the floating-point operations of matrix products in a second of training."""
        # The values of the weights do not matter, and orthogonal ones take time to compute.
        quick = replace(config.model, init="uniform")
        stream = BatchStream(self._ids, config.training, self._processes)
        tokens = config.training.batch_size * stream.num_steps
        with _restored_generators(self._processes.device):
            model = RecurrentLM(quick).to(self._processes.device)
            seconds = _seconds_per_step(model, stream, self._processes)
        return tokens * flops_per_token(config.model) / seconds


def attempt(trial: Callable[[RunConfig], float], config: RunConfig) -> float:
    """Return the result of a trial, which may fail.

    Raises:
        TrialError: the model cannot be trained, for example because the memory of a GPU is too
            small, or MPS lacks an operation. The memory of the attempt is released.
    """
    try:
        return trial(config)
    except (KernelError, LostProcessError, PeerError):
        raise
    except (RuntimeError, TypeError, MemoryError, ConfigError) as error:
        # torch raises a TypeError for fp64 on MPS. The traceback of the exception refers to tensors
        # in the frames of the trial. The exception is deleted at the end of this block, and only
        # then can the memory be released.
        _logger.debug("a trial failed", exc_info=True)
        reason = _reason(error)
    _release_memory()
    raise TrialError(reason)


def _seconds_per_step(model: RecurrentLM, stream: BatchStream, processes: Processes) -> float:
    """Measure a step of a model that is discarded afterwards."""
    batch = stream.typical_batch(MAX_TRIAL_STEPS)
    batch = replace(batch, gradient_scale=stream.recurrent_gradient_scale)
    silent = SilentProcesses(processes.rank, processes.count, processes.device)
    engine = select_engine(model.train(), stream.config, silent)
    is_gpu = model.device.type != "cpu"
    if is_gpu or engine.max_pending > 1:
        for _ in range(UNTIMED_STEPS):
            _mean_seconds(engine, batch)
    # The first step on a CPU allocates memory and builds code that the later ones reuse.
    mean = _mean_seconds(engine, batch)
    if mean < MAX_REPEATED_SECONDS:
        duration = GPU_TRIAL_SECONDS if is_gpu else TRIAL_SECONDS
        mean = _mean_seconds(engine, batch, int(duration / mean), duration)
    return mean * (stream.num_steps / int(batch.ids.shape[1]))


def _mean_seconds(
    engine: Engine, batch: Batch, max_group: int = 1, min_seconds: float = 0.0
) -> float:
    """Execute groups of steps for at least `min_seconds`, and return the mean duration of a step.

    The host waits for the device once in a group. The mean, unlike the minimum, includes the load
    of other processes, which training will share the machine with.

    Args:
        engine: the engine.
        batch: the batch of every step.
        max_group: maximum number of steps in a group, which the engine limits too.
        min_seconds: minimum duration; there is at least one group.
    """
    started, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < min_seconds or count == 0:
        group = max(1, min(engine.max_pending, max_group))
        for _ in range(group):
            engine.step(batch, 0.0)
        engine.synchronize()
        count += group
    return elapsed / count


@contextmanager
def _restored_generators(device: torch.device) -> Iterator[None]:
    """Restore torch's random generators when the context ends."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _reason(error: BaseException) -> str:
    """Return the first sentence of the message of an exception, without a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].strip().rstrip(".")


def _release_memory() -> None:
    """Return the unused memory in torch's cache to the GPU."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        gc.collect()
        torch.mps.empty_cache()
