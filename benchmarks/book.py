"""The book's experiments, each with the book's settings, beside the published figures.

    python benchmarks/book.py [--rows TEXT ...] [--speed-only] [--device cpu] [--json FILE]

Needs the corpora time-machine and jaychou-lyrics (RECURRA_DATA or a network). Trains every row with
the fastest backend and prints a Markdown table: the training perplexity of the last epoch, as the
book prints it, and the tokens/s of whole training steps (forward, backward, clip, update) of each
backend, measured in turns on the same batches before the training.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from recurra import d2l
from recurra.config import ModelConfig
from recurra.model import RecurrentLM
from recurra.training.clipping import clip_gradients

BATCH_SIZE, NUM_STEPS = 32, 35
BACKENDS = ("reference", "library", "bptt")
ROUNDS, STEPS_PER_ROUND = 7, 6

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Row:
    """One published run. `init` tells scratch (the book's normal 0.01) from concise (torch's)."""

    name: str
    corpus: str
    cell: str
    hidden_size: int
    init: str
    sampling: str
    epochs: int
    optimizer: str
    lr: float
    clip_norm: float
    published: str
    published_speed: str = ""


def _time_machine(
    name: str, cell: str, hidden: int, init: str, sampling: str, *figures: str
) -> Row:
    return Row(name, "time-machine", cell, hidden, init, sampling, 500, "sgd", 1.0, 1.0, *figures)


def _lyrics(name: str, sampling: str, init: str, optimizer: str, lr: float, figure: str) -> Row:
    return Row(name, "jaychou-lyrics", "rnn", 256, init, sampling, 250, optimizer, lr, 0.01, figure)


ROWS = [
    _time_machine("RNN scratch, sequential", "rnn", 512, "normal", "sequential", "1.1", "37,416"),
    _time_machine("RNN scratch, random", "rnn", 512, "normal", "random", "1.4", "36,557"),
    _time_machine("RNN concise", "rnn", 256, "uniform", "sequential", "1.3", "219,164"),
    _time_machine("GRU scratch", "gru", 256, "normal", "sequential", "1.1", "19.9k"),
    _time_machine("GRU concise", "gru", 256, "uniform", "sequential", "1.0", "109k"),
    _time_machine("LSTM scratch", "lstm", 256, "normal", "sequential", "1.3", "17.7k"),
    _time_machine("LSTM concise", "lstm", 256, "uniform", "sequential", "1.1", "235k"),
    _lyrics("lyrics, RNN scratch, random", "random", "normal", "sgd", 100.0, "1.32"),
    _lyrics("lyrics, RNN scratch, consecutive", "sequential", "normal", "sgd", 100.0, "1.21"),
    _lyrics("lyrics, RNN concise, Adam", "sequential", "uniform", "adam", 1e-3, "1.02"),
]


@dataclass(frozen=True)
class Result:
    """What a row gave here."""

    row: Row
    perplexity: float | None
    seconds: float | None
    tokens_per_second: dict[str, float]
    backend: str

    @property
    def reached(self) -> bool:
        """Whether the perplexity, rounded as the published one is, is as low."""
        digits = len(self.row.published.partition(".")[2])
        return self.perplexity is not None and (
            round(self.perplexity, digits) <= float(self.row.published)
        )


def load(row: Row) -> tuple[Batches, int]:
    """The row's batches, an epoch at each call, and the size of its vocabulary."""
    if row.corpus == "time-machine":
        loader, vocab = d2l.load_data_time_machine(
            BATCH_SIZE, NUM_STEPS, use_random_iter=row.sampling == "random"
        )
        return loader.__iter__, len(vocab)
    ids, _, _, vocab_size = d2l.load_data_jay_lyrics()
    batches = d2l.data_iter_random if row.sampling == "random" else d2l.data_iter_consecutive
    return lambda: batches(ids, BATCH_SIZE, NUM_STEPS), vocab_size


class Learner:
    """A model and its optimiser, taking whole training steps."""

    def __init__(self, row: Row, vocab_size: int, backend: str, device: str) -> None:
        torch.manual_seed(0)
        config = ModelConfig(
            cell=row.cell,
            hidden_size=row.hidden_size,
            vocab_size=vocab_size,
            init=row.init,
            backend=backend,
        )
        self.row = row
        self.model = RecurrentLM(config).to(device)
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[row.optimizer]
        self.optimizer = kind(self.model.parameters(), lr=row.lr, fused=True)
        self.state: tuple[Tensor, ...] | None = None

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """One update; the batch's mean loss in nats."""
        ids = inputs.long().to(self.model.device)
        loss, state = self.model.loss(ids, targets.long().to(self.model.device), self.state)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(self.model.named_parameters(), max_norm=self.row.clip_norm)
        self.optimizer.step()
        carried = tuple(s.detach() for s in state)
        self.state = carried if self.row.sampling == "sequential" else None
        return float(loss.detach())

    def epoch(self, batches: Batches) -> float:
        """One pass; its perplexity."""
        self.state, nats, tokens = None, 0.0, 0
        for inputs, targets in batches():
            nats += self.step(inputs, targets) * targets.numel()
            tokens += targets.numel()
        return math.exp(nats / tokens)


def measure_speed(row: Row, batches: Batches, vocab_size: int, device: str) -> dict[str, float]:
    """Median tokens/s of each backend, in turns, on the same batches."""
    learners = {name: Learner(row, vocab_size, name, device) for name in BACKENDS}
    pairs = list(batches())[:STEPS_PER_ROUND]
    rates: dict[str, list[float]] = {name: [] for name in BACKENDS}
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


def run(row: Row, device: str, *, train: bool) -> Result:
    """Measure a row's speeds and train it."""
    batches, vocab_size = load(row)
    speeds = measure_speed(row, batches, vocab_size, device)
    fastest = max(speeds, key=lambda name: speeds[name])
    if not train:
        return Result(row, None, None, speeds, fastest)
    learner = Learner(row, vocab_size, fastest, device)
    started, perplexity = time.perf_counter(), math.inf
    for epoch in range(1, row.epochs + 1):
        perplexity = learner.epoch(batches)
        if epoch % 50 == 0:
            print(f"{row.name}: epoch {epoch}, perplexity {perplexity:.3f}", file=sys.stderr)
    return Result(row, perplexity, time.perf_counter() - started, speeds, fastest)


def table(results: list[Result]) -> str:
    """The results in Markdown."""
    lines = [
        "| run | published perplexity | ours | reached | seconds |"
        " published tokens/s (GPU) | reference | library (torch.nn) | bptt | bptt / library |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        speed = result.tokens_per_second
        ours = "–" if result.perplexity is None else f"{result.perplexity:.3f}"
        seconds = "–" if result.seconds is None else f"{result.seconds:.0f}"
        lines.append(
            f"| {result.row.name} (h {result.row.hidden_size}) | {result.row.published} | {ours}"
            f" | {'yes' if result.reached else 'no'} | {seconds} | {result.row.published_speed}"
            f" | {speed['reference']:,.0f} | {speed['library']:,.0f} | {speed['bptt']:,.0f}"
            f" | {speed['bptt'] / speed['library']:.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", default=[], help="only rows whose name has this text")
    parser.add_argument("--speed-only", action="store_true", help="measure, do not train")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    rows = [r for r in ROWS if not options.rows or any(t in r.name for t in options.rows)]
    results = [run(row, options.device, train=not options.speed_only) for row in rows]
    print(table(results))
    if options.json:
        record = {
            "torch": torch.__version__,
            "device": options.device,
            "threads": torch.get_num_threads(),
            "rows": [asdict(result) for result in results],
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if options.speed_only or all(result.reached for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
