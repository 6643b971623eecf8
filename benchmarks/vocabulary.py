"""Measure training steps and evaluation with large vocabularies, and the memory of a step.

    python benchmarks/vocabulary.py [--vocabularies 28 1027 10000 50000] [--rounds 5] [--json FILE]

Prints a Markdown table: an RNN and an LSTM of 256 units with an embedding of 256 numbers, by the
compiled kernels and by torch.nn. The measurements of a row are interleaved. Memory is the peak of a
process that does two steps, minus that of a process that has imported torch; it is read from /proc,
so this script needs Linux. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# As `recurra bench` does: the threads of torch's OpenMP would spin on the cores of the kernels. The
# variable must be set before torch is loaded.
os.environ["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from torch import nn

from recurra.config import ModelConfig, TrainingConfig
from recurra.data.batches import BatchStream
from recurra.engine.select import select_engine
from recurra.inference.evaluate import evaluate
from recurra.model import RecurrentLM
from recurra.runtime.distributed import SINGLE_PROCESS

UNITS = 256
SHAPES = {"32 x 35": (32, 35), "16 x 64": (16, 64)}
CANDIDATES = ("torch.nn", "native, fp32", "native, bf16")
MODULES = {"rnn": nn.RNN, "lstm": nn.LSTM}


def torch_step(cell: str, vocabulary: int, rows: int, steps: int) -> Callable[[], None]:
    """Return a training step of torch.nn: SGD with clipping, one batch again and again."""
    torch.manual_seed(0)
    embedding, layer = nn.Embedding(vocabulary, UNITS), MODULES[cell](UNITS, UNITS)
    head = nn.Linear(UNITS, vocabulary)
    parameters = list(nn.ModuleList([embedding, layer, head]).parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    ids, targets = torch.randint(vocabulary, (2, steps, rows))

    def step() -> None:
        logits = head(layer(embedding(ids))[0].flatten(0, 1))
        loss = nn.functional.cross_entropy(logits, targets.flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def make_model(cell: Any, vocabulary: int, precision: Any) -> RecurrentLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": vocabulary, "hidden_size": UNITS, "embedding_size": UNITS}
    return RecurrentLM(ModelConfig(cell=cell, backend="native", precision=precision, **sizes))


def recurra_step(
    cell: str, vocabulary: int, rows: int, steps: int, precision: str
) -> Callable[[], None]:
    """Return the same training step by the compiled kernels."""
    model = make_model(cell, vocabulary, precision)
    config = TrainingConfig(
        steps=1, batch_size=rows, num_steps=steps, optimizer="sgd", lr=0.1, clip_norm=1.0
    )
    text = np.random.default_rng(0).integers(vocabulary, size=rows * (steps + 1) * 4)
    batch = next(BatchStream(text, config, SINGLE_PROCESS).epoch(0, 0))
    engine = select_engine(model, config)

    def step() -> None:
        engine.step(batch, 0.1)
        engine.synchronize()

    return step


def make_step(name: str, cell: str, vocabulary: int, shape: str) -> Callable[[], None]:
    rows, steps = SHAPES[shape]
    if name == "torch.nn":
        return torch_step(cell, vocabulary, rows, steps)
    return recurra_step(cell, vocabulary, rows, steps, name.split()[-1])


def milliseconds(works: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the median of each, measured alternately after a run that is not measured."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            work()
            start = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def peak_bytes(*arguments: str) -> int:
    """Return the peak memory of this script with these arguments in a new process."""
    output = subprocess.check_output([sys.executable, __file__, "--only-memory", *arguments])
    return int(output)


def report_peak(arguments: list[str]) -> None:
    if arguments:
        name, cell, vocabulary, shape = arguments
        step = make_step(name, cell, int(vocabulary), shape)
        step(), step()
    # The peak of `getrusage` includes that of the parent before it became this program.
    status = Path("/proc/self/status").read_text("ascii")
    print(1024 * int(status.partition("VmHWM:")[2].split()[0]))


def measure(cell: str, vocabulary: int, shape: str, rounds: int) -> dict[str, Any]:
    """Return the milliseconds and the memory of each candidate."""
    products = {
        f"product, {name}": torch.ones(1024, 1024, dtype=dtype)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    works = {name: make_step(name, cell, vocabulary, shape) for name in CANDIDATES}
    works |= {name: lambda m=m: torch.mm(m, m) for name, m in products.items()}  # type: ignore[misc]
    times = milliseconds(works, rounds)
    empty = peak_bytes()
    memory = {n: peak_bytes(n, cell, str(vocabulary), shape) - empty for n in CANDIDATES}
    row = {"cell": cell, "vocabulary": vocabulary, "shape": shape}
    return {**row, "milliseconds": times, "bytes": memory}


def lines(record: dict[str, Any]) -> list[str]:
    """Return the lines of the table for a row."""
    rows, steps = SHAPES[record["shape"]]
    times, gates = record["milliseconds"], 4 if record["cell"] == "lstm" else 1
    # Each weight has three products. The lookup replaces that with the input weights.
    flops = 6 * rows * steps * (2 * gates * UNITS**2 + UNITS * record["vocabulary"])
    found = []
    for name in CANDIDATES:
        product = times["product, bf16" if name.endswith("bf16") else "product, fp32"]
        share = flops / times[name] / (2 * 1024**3 / product)
        cells = (
            f"{record['cell']}, {record['shape']}, V {record['vocabulary']:,}",
            name,
            f"{times[name]:.1f}",
            f"{rows * steps / times[name] * 1e3:,.0f}",
            f"{share:.0%}",
            f"{times['torch.nn'] / times[name]:.2f}",
            f"{record['bytes'][name] / 2**20:,.0f}",
        )
        found.append("| " + " | ".join(cells) + " |")
    return found


def measure_evaluation(vocabulary: int, rounds: int) -> float:
    """Return the tokens per second of an evaluation of an RNN in fp32, 32 streams of 64."""
    model = make_model("rnn", vocabulary, "fp32")
    ids = np.random.default_rng(0).integers(vocabulary, size=32 * 64 + 1)
    times = milliseconds({"": lambda: void(evaluate(model, ids, num_streams=32))}, rounds)
    return 32 * 64 / times[""] * 1e3


def void(_: object) -> None:
    """Discard a result."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabularies", type=int, nargs="*", default=[28, 1027, 10_000, 50_000])
    parser.add_argument("--cells", nargs="*", default=list(MODULES), choices=list(MODULES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    parser.add_argument("--only-memory", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_memory is not None:
        report_peak(options.only_memory)
        return 0
    print("| | computed by | ms | tokens/s | % of matmul | times faster | MiB |")
    print("|---|---|---|---|---|---|---|")
    records = []
    for vocabulary in options.vocabularies:
        for cell in options.cells:
            for shape in SHAPES:
                records.append(measure(cell, vocabulary, shape, options.rounds))
                print("\n".join(lines(records[-1])), flush=True)
    rates = {v: measure_evaluation(v, options.rounds) for v in options.vocabularies}
    print("\nevaluation, tokens/s: " + ", ".join(f"V {v:,}: {r:,.0f}" for v, r in rates.items()))
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
