"""Repeat the experiments of Dive into Deep Learning and compare with the published figures.

    python benchmarks/book.py [--rows TEXT ...] [--seeds 3] [--speed-only] [--device cpu]
                              [--json FILE]

Requires the corpora time-machine and jaychou-lyrics (from RECURRA_DATA or the network). Prints a
Markdown table. For each row, the tokens/s of whole training steps (forward, backward, clipping,
update) are measured for every backend, interleaved and on the same batches. Then the fastest
backend trains the row with the book's settings. The perplexity is that of the last training epoch,
as the book prints it; with several seeds, the median and the range are printed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# As `recurra bench` does: the threads of torch's OpenMP would spin on the cores of the kernels. The
# variable must be set before torch is loaded.
os.environ["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "1000")

import torch
from torch import Tensor

from recurra import d2l
from recurra.config import ModelConfig
from recurra.engine.clipping import clip_gradients
from recurra.engine.select import select_gradients
from recurra.kernels import library as kernels
from recurra.model import RecurrentLM
from recurra.runtime import cores

BATCH_SIZE, NUM_STEPS = 32, 35
BACKENDS = ("reference", "library", "bptt")
ROUNDS, STEPS_PER_ROUND = 7, 6

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Row:
    """A published run, or a related run without a published figure.

    `init` is "normal" (standard deviation 0.01) for the book's implementations from scratch and
    "uniform" (torch's initialization) for the concise ones.
    """

    name: str
    corpus: str
    cell: str
    hidden_size: int
    init: str
    windows: str
    carries_state: bool
    epochs: int
    optimizer: str
    lr: float
    clip_norm: float
    published: str
    published_speed: str = ""


SEQUENTIAL, RANDOM, FRESH = ("sequential", True), ("random", False), ("sequential", False)
"""Kinds of windows, and whether the state is carried. The published call for random sampling runs
FRESH: it passes the sequential iterator, and only starts every batch from the zero state."""


def _time_machine(
    name: str, cell: str, hidden: int, init: str, sampling: tuple[str, bool], *figures: str
) -> Row:
    return Row(name, "time-machine", cell, hidden, init, *sampling, 500, "sgd", 1.0, 1.0, *figures)


def _lyrics(
    name: str, sampling: tuple[str, bool], init: str, optimizer: str, lr: float, figure: str
) -> Row:
    return Row(
        name, "jaychou-lyrics", "rnn", 256, init, *sampling, 250, optimizer, lr, 0.01, figure
    )


ROWS = [
    _time_machine("RNN scratch, sequential", "rnn", 512, "normal", SEQUENTIAL, "1.1", "37,416"),
    _time_machine("RNN scratch, random as called", "rnn", 512, "normal", FRESH, "1.4", "36,557"),
    _time_machine("RNN scratch, random windows", "rnn", 512, "normal", RANDOM, ""),
    _time_machine("RNN concise", "rnn", 256, "uniform", SEQUENTIAL, "1.3", "219,164"),
    _time_machine("GRU scratch", "gru", 256, "normal", SEQUENTIAL, "1.1", "19.9k"),
    _time_machine("GRU concise", "gru", 256, "uniform", SEQUENTIAL, "1.0", "109k"),
    _time_machine("LSTM scratch", "lstm", 256, "normal", SEQUENTIAL, "1.3", "17.7k"),
    _time_machine("LSTM concise", "lstm", 256, "uniform", SEQUENTIAL, "1.1", "235k"),
    _lyrics("lyrics, RNN scratch, random", RANDOM, "normal", "sgd", 100.0, "1.32"),
    _lyrics("lyrics, RNN scratch, consecutive", SEQUENTIAL, "normal", "sgd", 100.0, "1.21"),
    _lyrics("lyrics, RNN concise, Adam", SEQUENTIAL, "uniform", "adam", 1e-3, "1.02"),
]


@dataclass(frozen=True)
class Result:
    """The measurements of a row."""

    row: Row
    perplexities: list[float]
    seconds: float | None
    tokens_per_second: dict[str, float]
    backend: str

    @property
    def reached(self) -> bool | None:
        """Whether the rounded perplexity is at most the published one; None without one."""
        digits = len(self.row.published.partition(".")[2])
        if not self.perplexities or not self.row.published:
            return None
        return round(statistics.median(self.perplexities), digits) <= float(self.row.published)


def load(row: Row) -> tuple[Batches, int]:
    """Return a function that iterates over an epoch of batches, and the vocabulary size."""
    if row.corpus == "time-machine":
        loader, vocab = d2l.load_data_time_machine(
            BATCH_SIZE, NUM_STEPS, use_random_iter=row.windows == "random"
        )
        return loader.__iter__, len(vocab)
    ids, _, _, vocab_size = d2l.load_data_jay_lyrics()
    batches = d2l.data_iter_random if row.windows == "random" else d2l.data_iter_consecutive
    return lambda: batches(ids, BATCH_SIZE, NUM_STEPS), vocab_size


class Learner:
    """A model and its optimizer, for whole training steps."""

    def __init__(self, row: Row, vocab_size: int, backend: str, device: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        config = ModelConfig(
            cell=row.cell,
            hidden_size=row.hidden_size,
            vocab_size=vocab_size,
            embedding_size=0,
            init=row.init,
            backend=backend,
        )
        self.row = row
        self.model = RecurrentLM(config).to(device)
        if row.init == "normal":
            # The book's implementations from scratch have one bias, torch's have two.
            self.model.bias_hh_l0.requires_grad_(False)
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[row.optimizer]
        self.optimizer = kind(self.model.parameters(), lr=row.lr, fused=True)
        self.state: tuple[Tensor, ...] | None = None
        self.gradients = select_gradients(self.model)

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """Update the weights once and return the mean loss of the batch in nats."""
        device = self.model.device
        ids, targets = inputs.long().to(device), targets.long().to(device)
        loss, state = self.gradients.compute(ids, targets, self.state)
        clip_gradients(self.model.named_parameters(), max_norm=self.row.clip_norm)
        self.optimizer.step()
        self.state = state if self.row.carries_state else None
        return loss

    def epoch(self, batches: Batches) -> float:
        """Train for one epoch and return its perplexity."""
        self.state, nats, tokens = None, 0.0, 0
        for inputs, targets in batches():
            nats += self.step(inputs, targets) * targets.numel()
            tokens += targets.numel()
        return math.exp(nats / tokens)


def backends_on(device: str) -> tuple[str, ...]:
    """Return the backends that compute on a device; the compiled kernels need a CPU."""
    return (*BACKENDS, "native") if device == "cpu" and kernels.is_available() else BACKENDS


def measure_speed(row: Row, batches: Batches, vocab_size: int, device: str) -> dict[str, float]:
    """Return the median tokens/s of each backend, interleaved, on the same batches."""
    learners = {name: Learner(row, vocab_size, name, device) for name in backends_on(device)}
    pairs = list(batches())[:STEPS_PER_ROUND]
    rates: dict[str, list[float]] = {name: [] for name in learners}
    for learner in learners.values():
        learner.step(*pairs[0])
    for _ in range(ROUNDS):
        for name, learner in learners.items():
            started = time.perf_counter()
            for inputs, targets in pairs:
                learner.step(inputs, targets)
            tokens = sum(targets.numel() for _, targets in pairs)
            rates[name].append(tokens / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}


def run(row: Row, device: str, seeds: int) -> Result:
    """Measure the speed of a row on each backend and train it once for each seed."""
    batches, vocab_size = load(row)
    speeds = measure_speed(row, batches, vocab_size, device)
    fastest = max(speeds, key=lambda name: speeds[name])
    started, finals = time.perf_counter(), []
    for seed in range(seeds):
        learner, perplexity = Learner(row, vocab_size, fastest, device, seed), math.inf
        for epoch in range(1, row.epochs + 1):
            perplexity = learner.epoch(batches)
            if epoch % 50 == 0:
                shown = f"{row.name}: seed {seed}, epoch {epoch}, perplexity {perplexity:.3f}"
                print(shown, file=sys.stderr)
        finals.append(perplexity)
    seconds = (time.perf_counter() - started) / seeds if seeds else None
    return Result(row, finals, seconds, speeds, fastest)


_REACHED = {True: "yes", False: "no", None: "–"}


def table(results: list[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| run | published perplexity | ours | reached | seconds |"
        " published tokens/s (GPU) | reference | library (torch.nn) | bptt | native"
        " | fastest / library |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        speed = result.tokens_per_second
        ours = _spread(result.perplexities)
        native = f"{speed['native']:,.0f}" if "native" in speed else "–"
        seconds = "–" if result.seconds is None else f"{result.seconds:.0f}"
        lines.append(
            f"| {result.row.name} (h {result.row.hidden_size}) | {result.row.published} | {ours}"
            f" | {_REACHED[result.reached]} | {seconds} | {result.row.published_speed}"
            f" | {speed['reference']:,.0f} | {speed['library']:,.0f} | {speed['bptt']:,.0f}"
            f" | {native}"
            f" | {speed[result.backend] / speed['library']:.2f} |"
        )
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    median = f"{statistics.median(values):.3f}"
    return median if len(values) == 1 else f"{median} ({min(values):.3f} to {max(values):.3f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", nargs="*", default=[], help="only rows whose name contains one of these"
    )
    parser.add_argument("--seeds", type=int, default=1, help="train each row this many times")
    parser.add_argument(
        "--speed-only", action="store_true", help="measure the speed without training"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    rows = [r for r in ROWS if not options.rows or any(t in r.name for t in options.rows)]
    seeds = 0 if options.speed_only else options.seeds
    results = [run(row, options.device, seeds) for row in rows]
    print(table(results))
    if options.json:
        record = {
            "torch": torch.__version__,
            "device": options.device,
            "threads": cores.threads(),
            "rows": [asdict(result) for result in results],
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if any(result.reached is False for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
