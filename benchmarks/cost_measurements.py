"""Measure the kernels of a training step, for `cost_model.py`."""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from recurra.cli.benchmark import training_engine
from recurra.cli.benchmark_rows import TrainingRow
from recurra.kernels import library
from recurra.runtime.devices import num_threads

LANES = library.load().recurra_lanes()
PANEL = 2 * LANES
"""Columns of a panel of packed weights."""
MAX_TRIES = 60
"""Maximum number of measurements of a row in the wrong state, see `measure_in_state`."""
PAUSE = 1.0
"""Seconds before another one: the host moves the cores at intervals of seconds."""
NAMES = {
    "recurra_layer_forward": "forward",
    "recurra_layer_backward": "backward",
    "recurra_output_forward": "output forward",
    "recurra_output_backward": "output backward",
    "add_rows": "lookup",
    "transpose": "tables",
}


@dataclass
class Measured:
    """Seconds of the kernels of a step, and of the whole step: the first decile of each."""

    kernels: dict[str, float]
    step: float


def measure(row: TrainingRow, precision: str, threads: int, rounds: int) -> Measured:
    """Measure the steps of a model and the recorded calls of which they consist."""
    with num_threads(threads):
        engine: Any
        engine, batch = training_engine(row, "native", precision)

        def step() -> None:
            engine.step(batch, 0.1)
            engine.synchronize()

        for _ in range(3):
            step()
        calls = engine._gradients._recorded.program._calls
        update = [engine._update.gradient_norm, lambda: engine._update.step(0.1, 1.0)]
        whole, single = [], defaultdict(list)
        for _ in range(rounds * 4):
            whole.append(_seconds(step))
            sums: dict[str, float] = defaultdict(float)
            with torch.no_grad():
                for call in calls:
                    sums[_name(call)] += _seconds(call)
            sums["update"] = sum(map(_seconds, update))
            for name, seconds in sums.items():
                single[name].append(seconds)
    found = {name: _fast(times) for name, times in single.items()}
    found["outside"] = _fast(whole) - sum(found.values())
    return Measured(found, _fast(whole))


def measure_in_state(
    row: TrainingRow, precision: str, threads: int, rounds: int, barrier: float
) -> Measured:
    """Measure as `measure`, while a shared step takes about `barrier` seconds.

    On a virtual machine, the host can move the cores apart or together within seconds, which
    changes the times of small models by up to a half.
    """
    measured = measure(row, precision, threads, rounds)
    for _ in range(MAX_TRIES):
        if 0.5 * barrier < measure_waiting()[1] < 2.0 * barrier:
            return measured
        time.sleep(PAUSE)  # The state of the machine lasts for seconds.
        measured = measure(row, precision, threads, rounds)
    print("the latency between the cores differs from that of the calibration", file=sys.stderr)
    return measured


def _fast(times: list[float]) -> float:
    """Return the first decile: other programs make single measurements slower, never faster."""
    return statistics.quantiles(times, n=10, method="inclusive")[0]


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _name(call: Any) -> str:
    name = call.func.__name__
    if name == "recurra_multiply_transposed":
        product = call.args[0]._obj
        return "recurrent weight" if product.m % product.n == 0 else "output weight"
    return NAMES.get(name, "tables")


def measure_waiting() -> tuple[float, float]:
    """Return the seconds of a stage and of a shared step for two threads, beside the work."""
    from recurra.kernels.products import transpose

    matrix, out = torch.zeros(2 * LANES, LANES), torch.zeros(LANES, 2 * LANES)
    with num_threads(1):
        alone = statistics.median(_seconds(lambda: transpose(matrix, out)) for _ in range(999))
    with num_threads(2):
        both = statistics.median(_seconds(lambda: transpose(matrix, out)) for _ in range(999))
    stage = max(both - alone, 0.0)
    # One row, which only units can divide: the work is small, and the threads wait at every step.
    row = TrainingRow("rnn", 2 * PANEL, 2, 400, batch_size=1)
    one, two = (measure(row, "fp32", threads, 10).kernels["forward"] for threads in (1, 2))
    return stage, max((two - one / 2 - 2 * stage) / row.num_steps, 0.0)
