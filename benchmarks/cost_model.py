"""Predict the time of a training step by the compiled kernels from the work that it consists of.

    python benchmarks/cost_model.py [--threads 2] [--also 8 16 64] [--rounds 5] [--json FILE]

The model states the time of every kernel of a step as a sum: its products, the vectors of its
elementwise equations, the values that it packs, the bytes that it reads or writes beyond the
second-level cache, and a constant. The work is that of the busiest thread. In addition, the threads
start together once for every stage, and wait for each other at every step that they share. The
factors are fitted to measurements of sizes that `recurra bench` does not have, with the given
number of threads, and the prediction is compared with measurements of the rows of `recurra bench`.
For other numbers of threads, the factors are the same: a core is assumed to be as fast beside many
others as beside these. Prints Markdown tables. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from ctypes import c_int32
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# As `recurra bench` does: the threads of torch's OpenMP would spin on the cores of the kernels. The
# variable must be set before torch is loaded.
os.environ["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "1000")

import numpy as np

from cost_measurements import LANES, PANEL, measure_in_state, measure_waiting
from recurra.cli.benchmark_rows import ROWS, TrainingRow
from recurra.kernels import library
from recurra.recurrence.cells import find_cell
from recurra.runtime.devices import processor_name

CELLS = ("rnn", "gru", "lstm")
PRECISIONS = ("fp32", "bf16")
CALIBRATION = (
    (96, 24, 20), (160, 650, 20), (224, 48, 50), (320, 1400, 20), (320, 96, 80), (448, 160, 20),
    (448, 40, 50), (608, 320, 20), (608, 32, 50),
)  # fmt: skip
"""Units, vocabulary and steps of the models that are measured."""
SECOND_CACHE = library.load().recurra_cache_bytes(2)


@dataclass(frozen=True)
class Work:
    """The work of a kernel.

    Attributes:
        products: floating-point operations, panels counted as whole.
        vectors: vectors of the elementwise part.
        packed: numbers that are packed or transposed.
        far: bytes that are read or written beyond the second-level cache.
    """

    products: float = 0.0
    vectors: float = 0.0
    packed: float = 0.0
    far: float = 0.0

    @property
    def features(self) -> list[float]:
        """The factors' features; the last one is that of the constant."""
        return [self.products, self.vectors, self.packed, self.far, 1.0]


@dataclass(frozen=True)
class Kernel:
    """A kernel of a training step: its name and work, and the steps at which threads wait."""

    name: str
    work: Work
    barriers: int = 0
    stages: int = 1


def panels(columns: int) -> int:
    return -(-columns // PANEL)


def division(row: TrainingRow, precision: str, threads: int) -> tuple[int, int]:
    """Return the groups of rows, and the parts of units of each group."""
    chosen = (c_int32 * 2)()
    gates, size = find_cell(row.cell).num_gates, 4 if precision == "fp32" else 2
    caches = [library.load().recurra_cache_bytes(level) for level in (1, 2)]
    library.load().recurra_divide(
        threads, row.batch_size, row.hidden_size, gates, size, *caches, chosen
    )
    return chosen[0], chosen[1]


def kernels(row: TrainingRow, precision: str, threads: int) -> list[Kernel]:
    """Return the kernels of a step with one-hot inputs, with the work of the busiest thread."""
    gates, units, vocab = find_cell(row.cell).num_gates, row.hidden_size, row.vocab_size
    rows, size = row.batch_size * row.num_steps, 4 if precision == "fp32" else 2
    groups, parts = division(row, precision, threads)
    own_rows = math.ceil(row.batch_size / groups)
    own_panels = math.ceil(panels(units) / parts)
    own_weight = gates * units * own_panels * PANEL * size
    # h, c and the values that are saved for the backward pass, or the deltas.
    state = PANEL * 4 * (1 if row.cell == "rnn" else 6)
    step = Work(
        products=2.0 * own_rows * row.num_steps * gates * units * own_panels * PANEL,
        vectors=own_rows * row.num_steps * own_panels * 2,
        packed=gates * units * units / threads,
        far=_far(own_weight) * row.num_steps + _far(own_rows * row.num_steps * own_panels * state),
    )
    barriers = row.num_steps if parts > 1 else 0
    share = math.ceil(rows / threads)
    head = 2.0 * share * units * panels(vocab) * PANEL
    logits = _far(share * panels(vocab) * PANEL * size) + share * units * 4
    deltas = gates + (1 if row.cell == "gru" else 0)
    found = [
        Kernel("forward", step, barriers, 2),
        Kernel("backward", step, barriers, 2),
        Kernel(
            "output forward",
            Work(head, share * panels(vocab) * 2, units * vocab / threads, logits),
            stages=2,
        ),
        Kernel("output backward", Work(head, 0.0, units * vocab / threads, logits), stages=2),
        Kernel("output weight", _transposed(rows, vocab, units, threads), stages=4),
        Kernel("lookup", Work(0.0, math.ceil(rows * deltas * units / LANES / threads), 0.0)),
        Kernel("tables", Work(0.0, 0.0, 2.0 * vocab * gates * units / threads), stages=2),
        # Python code, copies of the inputs and of the state.
        Kernel("outside", Work(0.0, 0.0, row.batch_size * (units + row.num_steps)), stages=0),
        Kernel("update", Work(0.0, gates * units * (units + vocab) / LANES / threads), stages=2),
    ]
    widths = [2 * units, units] if row.cell == "gru" else [gates * units]
    found += [
        Kernel("recurrent weight", _transposed(rows, width, units, threads), stages=4)
        for width in widths
    ]
    return found


def _far(size: float) -> float:
    return size if size > 0.75 * SECOND_CACHE else 0.0


def _transposed(rows: int, m: int, n: int, threads: int) -> Work:
    blocks = math.ceil(m / 32)
    by_blocks = _imbalance(blocks, threads) <= _imbalance(panels(n), threads)
    if by_blocks:
        own = math.ceil(blocks / threads) * 32 * panels(n) * PANEL
        packed = rows * (n / threads + math.ceil(blocks / threads) * 32)
    else:
        own = blocks * 32 * math.ceil(panels(n) / threads) * PANEL
        packed = rows * (n / threads + m)
    return Work(products=2.0 * rows * own, packed=packed)


def _imbalance(items: int, threads: int) -> float:
    return math.ceil(items / threads) * threads / items


@dataclass
class Model:
    """The fitted factors, seconds per feature, and the costs of waiting for each other.

    Attributes:
        factors: of each kernel, by (name, cell, precision); kernels that do not depend on the cell
            have an empty one.
        stage: seconds of starting and ending a stage with several threads.
        barrier: seconds of waiting for each other after a step.
    """

    factors: dict[tuple[str, str, str], list[float]]
    stage: float
    barrier: float

    def seconds(self, row: TrainingRow, precision: str, threads: int) -> float:
        """Return the predicted time of a training step."""
        total = 0.0
        doublings = math.log2(threads) if threads > 1 else 0.0
        for kernel in kernels(row, precision, threads):
            factors = self.factors[_key(kernel.name, row.cell, precision)]
            total += float(np.dot(factors, kernel.work.features))
            total += doublings * (kernel.stages * self.stage + kernel.barriers * self.barrier)
        return total


def _key(name: str, cell: str, precision: str) -> tuple[str, str, str]:
    return (name, cell if name in ("forward", "backward") else "", precision)


def calibrate(threads: int, rounds: int, log: Callable[[str], None]) -> Model:
    """Fit the factors to measurements with this number of threads."""
    stage, barrier = measure_waiting()
    doublings = math.log2(threads)
    features: dict[tuple[str, str, str], list[list[float]]] = defaultdict(list)
    seconds: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for cell in CELLS:
        for units, vocab, steps in CALIBRATION:
            row = TrainingRow(cell, units, vocab, steps)
            for precision in PRECISIONS:
                log(f"{row.name}, {precision}")
                measured = measure_in_state(row, precision, threads, rounds, barrier)
                work: dict[str, list[float]] = {}
                waiting: dict[str, float] = defaultdict(float)
                for kernel in kernels(row, precision, threads):
                    before = np.array(work.get(kernel.name, [0.0] * 5))
                    work[kernel.name] = list(before + kernel.work.features)
                    waiting[kernel.name] += doublings * (
                        kernel.stages * stage + kernel.barriers * barrier
                    )
                for name, found in work.items():
                    features[_key(name, cell, precision)].append(found)
                    own = max(measured.kernels[name] - waiting[name], 1e-7)
                    seconds[_key(name, cell, precision)].append(own)
    factors = {key: _fit(features[key], seconds[key]) for key in features}
    return Model(factors, stage, barrier)


def _fit(features: list[list[float]], seconds: list[float]) -> list[float]:
    """Return factors that are not negative and have the smallest relative squared error."""
    wanted = np.ones(len(seconds))
    matrix = np.array(features) / np.array(seconds)[:, None]
    scale = np.where(matrix.max(axis=0) > 0, matrix.max(axis=0), 1.0)
    used = list(range(matrix.shape[1]))
    while True:
        solved, *_ = np.linalg.lstsq((matrix / scale)[:, used], wanted, rcond=None)
        if (solved >= 0).all():
            break
        used = [column for column, value in zip(used, solved, strict=True) if value >= 0]
    result = np.zeros(matrix.shape[1])
    result[used] = solved / scale[used]
    return [float(value) for value in result]


def _modelled_rows() -> list[TrainingRow]:
    """Return the rows of `recurra bench` that the model covers: it has no term for masks."""
    return [row for row in ROWS if isinstance(row, TrainingRow) and not row.dropout]


def compare(model: Model, threads: int, rounds: int, log: Callable[[str], None]) -> list[Any]:
    """Return (row, precision, predicted and measured seconds) of the rows of `recurra bench`."""
    results = []
    for row in _modelled_rows():
        for precision in PRECISIONS:
            log(f"{row.name}, {precision}")
            measured = measure_in_state(row, precision, threads, rounds, model.barrier)
            results.append((row, precision, model.seconds(row, precision, threads), measured.step))
    return results


def comparison_table(results: Iterable[Any], threads: int) -> str:
    lines = [
        f"| row, {threads} threads | predicted ms | measured ms | predicted / measured |",
        "|---|---|---|---|",
    ]
    for row, precision, predicted, measured in results:
        lines.append(
            f"| {row.name}, {precision} | {predicted * 1e3:.2f} | {measured * 1e3:.2f} |"
            f" {predicted / measured:.2f} |"
        )
    return "\n".join(lines)


def scaling_table(model: Model, counts: list[int]) -> str:
    rows = _modelled_rows()
    rows += [replace(row, batch_size=16) for row in rows if row.hidden_size == 512]
    lines = [
        "| row | " + " | ".join(f"{count} threads" for count in counts) + " |",
        "|---|" + "---|" * len(counts),
    ]
    for row in rows:
        for precision in PRECISIONS:
            base = model.seconds(row, precision, counts[0])
            cells = []
            for count in counts:
                seconds = model.seconds(row, precision, count)
                groups, parts = division(row, precision, count)
                cells.append(f"{seconds * 1e3:.2f} ({base / seconds:.1f}; {groups} x {parts})")
            lines.append(f"| {row.name}, {precision} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="threads of the measurements")
    parser.add_argument("--also", type=int, nargs="*", default=[8, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the factors and results to this file")
    options = parser.parse_args()

    def log(text: str) -> None:
        print(f"measuring {text} ...", file=sys.stderr)

    model = calibrate(options.threads, options.rounds, log)
    results = compare(model, options.threads, options.rounds, log)
    print(f"{processor_name()}\n\n{comparison_table(results, options.threads)}\n")
    print("Milliseconds (ratio to the first column; groups of rows x parts of units)\n")
    print(scaling_table(model, [options.threads, *options.also]))
    waiting = f"{model.stage * 1e6:.1f} us, and a shared step {model.barrier * 1e6:.2f}"
    print(f"\nA stage takes {waiting}.")
    if options.json:
        factors = {", ".join(key): value for key, value in model.factors.items()}
        found = [(row.name, *rest) for row, *rest in results]
        written = {"factors": factors, "results": found}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
