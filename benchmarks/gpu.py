"""Measure whole training steps, generation and evaluation on a GPU beside torch.nn.

    python benchmarks/gpu.py [--device cuda] [--rows WORD ...] [--precisions fp32 ...] [--rounds 7]
                             [--seconds 240] [--inference-tokens 256] [--json FILE]

Prints Markdown tables. In the first table, a row is one model, one batch shape and one precision.
It has three columns: recurra with the engine that trains, torch.nn without a graph, and torch.nn
with the whole step in one CUDA graph (see benchmarks/torch_steps.py). The measurements of a row
alternate. Each consists of several steps, and the host waits for the device only before and after
them. A figure is the median over the rounds. After `--seconds`, no further row is started.

On devices other than CUDA, the column of graphs is empty.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gpu_inference
from recurra.config import ModelConfig, TrainingConfig
from recurra.data.batches import BatchStream
from recurra.engine.select import select_engine
from recurra.errors import RecurraError
from recurra.model.recurrent_lm import RecurrentLM
from recurra.runtime.devices import choose_device, device_name, processor_name
from recurra.runtime.distributed import SINGLE_PROCESS
from torch_steps import Setup, TorchGraph, TorchSteps, ways

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
COLUMNS = ("recurra", "torch", "graph")
TABLE_HEAD = """\
| row | precision | recurra, ms | torch.nn, ms | torch.nn in a graph, ms | torch.nn / recurra | \
graph / recurra |
|---|---|---|---|---|---|---|"""
NUM_BATCHES = 8
ROUND_SECONDS = 0.02
MAX_STEPS = 50


@dataclass(frozen=True)
class Row:
    """A model and a batch shape."""

    cell: str
    hidden_size: int
    batch_size: int
    num_steps: int
    vocab_size: int
    optimizer: str

    @property
    def name(self) -> str:
        """The name in the results."""
        return f"{self.cell} {self.hidden_size}, {self.batch_size} x {self.num_steps}"

    @property
    def num_tokens(self) -> int:
        """Number of tokens in a batch."""
        return self.batch_size * self.num_steps


ROWS = (
    Row("rnn", 512, 32, 35, 28, "sgd"),
    Row("rnn", 256, 32, 35, 28, "sgd"),
    Row("gru", 256, 32, 35, 28, "sgd"),
    Row("lstm", 256, 32, 35, 28, "sgd"),
    Row("lstm", 512, 32, 64, 65, "adam"),
    Row("lstm", 1024, 64, 128, 65, "adam"),
    Row("lstm", 2048, 128, 128, 65, "adam"),
)


@dataclass
class Candidate:
    """Training steps that are measured.

    Attributes:
        precision, column: the place in the table.
        how: the engine of recurra, or the way in which torch.nn computes, see `torch_steps.ways`.
        run: launches a number of steps.
        steps: number of steps of a measurement.
        seconds: seconds per step, one value per round.
    """

    precision: str
    column: str
    how: str
    run: Callable[[int], None]
    steps: int = 1
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the seconds per step."""
        return statistics.median(self.seconds)


def our_steps(row: Row, precision: str, device: torch.device) -> tuple[str, Callable[[int], None]]:
    """Return the name of the engine that trains this row, and its steps."""
    torch.manual_seed(0)
    config = ModelConfig(
        cell=row.cell,
        vocab_size=row.vocab_size,
        hidden_size=row.hidden_size,
        embedding_size=0,
        precision=precision,
    )
    training = TrainingConfig(
        steps=1,
        batch_size=row.batch_size,
        num_steps=row.num_steps,
        optimizer=row.optimizer,
        lr=0.1 if row.optimizer == "sgd" else 1e-3,
        clip_norm=1.0,
    )
    engine = select_engine(RecurrentLM(config).to(device), training)
    stream = BatchStream(random_text(row), training, SINGLE_PROCESS)
    batches = itertools.cycle(list(itertools.islice(stream.epoch(0), NUM_BATCHES)))

    def run(count: int) -> None:
        for number in range(1, count + 1):
            engine.step(next(batches), training.lr)
            if number % engine.max_pending == 0 or number == count:
                failed = [result.failure for result in engine.synchronize() if result.failure]
                if failed:
                    raise SystemExit(f"{row.name}, {precision}: {failed[0]}")

    return type(engine).__name__, run


def random_text(row: Row) -> np.ndarray:
    """Return random ids for more than `NUM_BATCHES` batches of a row."""
    length = row.batch_size * (row.num_steps + 1) * (NUM_BATCHES + 1)
    return np.random.default_rng(0).integers(row.vocab_size, size=length)


def torch_batches(row: Row) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return random batches for torch.nn."""
    torch.manual_seed(0)
    shape = (NUM_BATCHES, 2, row.batch_size, row.num_steps)
    return [(pair[0], pair[1]) for pair in torch.randint(row.vocab_size, shape)]


def candidates(
    row: Row, precisions: Sequence[str], device: torch.device
) -> tuple[list[Candidate], dict[str, str]]:
    """Return the candidates of a row, and the reason for each one that cannot be measured."""
    found: list[Candidate] = []
    reasons: dict[str, str] = {}
    for precision in precisions:
        try:
            found.append(Candidate(precision, "recurra", *our_steps(row, precision, device)))
        except RecurraError as error:
            reasons[f"{precision} recurra"] = str(error)
        kinds = [("torch", TorchSteps)] + ([("graph", TorchGraph)] if _has_graphs(device) else [])
        for (column, kind), way in itertools.product(kinds, ways(precision)):
            setup = Setup(
                row.cell, row.hidden_size, row.vocab_size, row.optimizer, precision, device, way
            )
            try:
                steps = kind(setup, torch_batches(row))
                steps.run(1)
                found.append(Candidate(precision, column, way, steps.run))
            except RuntimeError as error:
                # torch may lack a baseline in this precision, or memory for it. The notes below the
                # table and the JSON give the reason.
                reasons[f"{precision} {column} {way}"] = str(error).splitlines()[0]
    return found, reasons


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


def measure(
    row: Row, precisions: Sequence[str], device: torch.device, rounds: int
) -> dict[str, Any]:
    """Measure a row, and return its record."""
    measured, reasons = candidates(row, precisions, device)
    for candidate in measured:
        candidate.run(2)  # Warm-up: the libraries choose kernels and allocate memory.
        seconds = timed(candidate.run, 2, device)
        candidate.steps = min(max(round(ROUND_SECONDS / seconds), 1), MAX_STEPS)
    for _ in range(rounds):
        for candidate in measured:
            candidate.run(1)  # The previous candidate has replaced the contents of the caches.
            candidate.seconds.append(timed(candidate.run, candidate.steps, device))
    best: dict[tuple[str, str], Candidate] = {}
    for candidate in sorted(measured, key=lambda c: c.median):
        best.setdefault((candidate.precision, candidate.column), candidate)
    figures = {
        precision: {
            column: {
                "milliseconds": best[precision, column].median * 1e3,
                "tokens_per_second": row.num_tokens / best[precision, column].median,
                "how": best[precision, column].how,
                "all": [s * 1e3 for s in best[precision, column].seconds],
            }
            for column in COLUMNS
            if (precision, column) in best
        }
        for precision in precisions
    }
    return {"row": row.name, "optimizer": row.optimizer, "steps": figures, "not measured": reasons}


def timed(run: Callable[[int], None], count: int, device: torch.device) -> float:
    """Return the mean duration of `count` steps in seconds."""
    gpu_inference.wait_for(device)
    started = time.perf_counter()
    run(count)
    gpu_inference.wait_for(device)
    return (time.perf_counter() - started) / count


def table_lines(record: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a row in the Markdown table, one for each precision."""
    for precision, figures in record["steps"].items():
        times = [figures[c]["milliseconds"] if c in figures else None for c in COLUMNS]
        cells = ["–" if t is None else f"{t:.2f}" for t in times]
        for other in times[1:]:
            known = times[0] is not None and other is not None
            cells.append(f"{other / times[0]:.2f}" if known else "–")
        yield f"| {record['row']} | {precision} | {' | '.join(cells)} |"


def describe(device: torch.device) -> dict[str, str]:
    """Return names and versions of the hardware and the libraries."""
    return {
        "device": device_name(device),
        "processor": processor_name(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "hip": str(torch.version.hip),
        "cudnn": str(torch.backends.cudnn.version()),
        "system": platform.platform(),
    }


def parse_arguments() -> tuple[argparse.Namespace, torch.device, list[Row]]:
    """Return the options, the device and the rows to measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--rows", nargs="*", default=[], help="only rows whose name contains these words"
    )
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=240.0, help="start no row after this time")
    parser.add_argument(
        "--inference-tokens",
        type=int,
        default=256,
        help="number of tokens of a generated sample; 0 measures neither generation nor evaluation",
    )
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    options = parser.parse_args()
    try:
        device = choose_device(options.device)
    except RecurraError as error:
        parser.error(str(error))
    rows = [row for row in ROWS if set(options.rows) <= set(row.name.replace(",", "").split())]
    if not rows:
        names = "; ".join(row.name for row in ROWS)
        parser.error(f"no row contains {' '.join(options.rows)!r}; the rows are: {names}")
    return options, device, rows


def main() -> int:
    started = time.monotonic()
    options, device, rows = parse_arguments()
    results: dict[str, Any] = {"machine": describe(device), "rows": [], "left out": []}

    def is_late() -> bool:
        return time.monotonic() - started > options.seconds

    print(", ".join(f"{k} {v}" for k, v in results["machine"].items() if v != "None"))
    print(f"\nWhole training steps\n\n{TABLE_HEAD}", flush=True)
    for row in rows:
        if is_late():
            results["left out"].append(row.name)
            continue
        record = measure(row, options.precisions, device, options.rounds)
        results["rows"].append(record)
        # This program may be stopped, so every row is printed and saved at once.
        print("\n".join(table_lines(record)), flush=True)
        save(results, options.json)
    for record in results["rows"]:
        for what, reason in record["not measured"].items():
            print(f"{record['row']}: {what} was not measured: {reason}")
    if options.inference_tokens:
        if is_late():
            results["left out"].append("generation and evaluation")
        else:
            results["inference"] = gpu_inference.measure(
                device, options.rounds, options.inference_tokens
            )
            print(f"\n{gpu_inference.TITLE}\n\n{gpu_inference.table(results['inference'])}")
    if results["left out"]:
        print(f"Left out after {options.seconds:.0f} s: {'; '.join(results['left out'])}")
    save(results, options.json)
    return 0


def save(results: dict[str, Any], file: Path | None) -> None:
    """Write the results so far, so that they are kept if this program is stopped."""
    if file is not None:
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
