"""Measure the speed of training beside other programs that use the same cores.

    python benchmarks/contention.py [--seconds 4] [--rounds 3] [--only WORKLOAD ...]

Requires the corpus time-machine (from RECURRA_DATA or the network). Each workload is a process that
trains on the CPU with the default number of threads. It is measured alone, beside a second process
with the same workload, and beside one and two busy loops. Prints a Markdown table of tokens/s, and
of the speed relative to the process alone. Run nothing else meanwhile.

torch is imported before recurra, as in the code of Dive into Deep Learning.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

BATCH_SIZE, NUM_STEPS = 32, 35
WARM_UP_SECONDS = 3.0
BUSY_LOOP = "while True: pass"
SITUATIONS = ("alone", "beside a copy", "beside one busy loop", "beside two busy loops")

Step = Callable[[], int]
"""Trains on one batch and returns its number of tokens."""


def engine_step(cell: str, units: int, precision: str) -> Step:
    """Return a step of the engine that `recurra train` uses."""
    from recurra.cli.benchmark import training_engine
    from recurra.cli.benchmark_rows import TrainingRow

    row = TrainingRow(cell, units, 28, NUM_STEPS, BATCH_SIZE)
    engine, batch = training_engine(row, "native", precision)

    def step() -> int:
        engine.step(batch, 0.01)
        engine.synchronize()
        return batch.num_tokens

    return step


def book_step() -> Step:
    """Return a step of the book's RNN from scratch, with 512 units."""
    import torch
    from torch import nn

    from recurra import d2l

    torch.manual_seed(0)
    batches, vocab = d2l.load_data_time_machine(BATCH_SIZE, NUM_STEPS)

    def parameters(size: int, units: int, device: torch.device) -> list[torch.Tensor]:
        shapes = ((size, units), (units, units), (units,), (units, size), (size,))
        return [(0.01 * torch.randn(shape, device=device)).requires_grad_() for shape in shapes]

    def forward(inputs, state, params):  # type: ignore[no-untyped-def]
        w_xh, w_hh, b_h, w_hq, b_q = params
        (h,), outputs = state, []
        for x in inputs:
            h = torch.tanh(x @ w_xh + h @ w_hh + b_h)
            outputs.append(h @ w_hq + b_q)
        return torch.cat(outputs), (h,)

    def zeros(batch: int, units: int, device: torch.device) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(batch, units, device=device),)

    device = torch.device("cpu")
    net = d2l.RNNModelScratch(len(vocab), 512, device, parameters, zeros, forward)
    return _epochs(net, batches, nn.CrossEntropyLoss(), device)


def concise_step() -> Step:
    """Return a step of the book's concise RNN, with 256 units: compiled layer and autograd."""
    import torch
    from torch import nn

    import recurra.nn
    from recurra import d2l

    torch.manual_seed(0)
    batches, vocab = d2l.load_data_time_machine(BATCH_SIZE, NUM_STEPS)
    net = d2l.RNNModel(recurra.nn.RNN(len(vocab), 256), len(vocab))
    return _epochs(net, batches, nn.CrossEntropyLoss(), torch.device("cpu"))


def _epochs(net, batches, loss, device) -> Step:  # type: ignore[no-untyped-def]
    from torch import nn, optim

    from recurra import d2l

    if isinstance(net, nn.Module):
        update = optim.SGD(net.parameters(), lr=1.0)
    else:

        def update(batch_size: int) -> None:
            d2l.sgd(net.params, 1.0, batch_size)

    pairs = list(batches)[:8]

    def step() -> int:
        d2l.train_epoch_ch8(net, pairs, loss, update, device, False)
        return sum(y.numel() for _, y in pairs)

    return step


WORKLOADS: dict[str, Callable[[], Step]] = {
    "native, lstm 256, bf16": lambda: engine_step("lstm", 256, "bf16"),
    "native, rnn 256, fp32": lambda: engine_step("rnn", 256, "fp32"),
    "book, concise, rnn 256": concise_step,
    "book, from scratch, rnn 512": book_step,
}


def measure_here(workload: str, seconds: float) -> None:
    """Train for some seconds after the warm-up, and print the tokens/s."""
    import torch  # noqa: F401  # before recurra

    step = WORKLOADS[workload]()
    for _ in _until(WARM_UP_SECONDS, step):
        pass
    start = time.perf_counter()
    tokens = sum(_until(seconds, step))
    print(tokens / (time.perf_counter() - start))


def _until(seconds: float, step: Step) -> Iterator[int]:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        yield step()


def measure(workload: str, situation: str, seconds: float) -> float:
    """Return the tokens/s of a process in a situation; the mean of both if there is a copy."""
    command = [sys.executable, __file__, "--here", workload, "--seconds", str(seconds)]
    busy_loops = {"beside one busy loop": 1, "beside two busy loops": 2}.get(situation, 0)
    copies = 2 if situation == "beside a copy" else 1
    others = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(busy_loops)]
    try:
        running = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(copies)
        ]
        outputs = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for other in others:
            other.kill()
    return statistics.mean(float(output.split()[-1]) for output in outputs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(WORKLOADS), help="names of workloads")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure_here(options.here, options.seconds)
        return 0
    print("| | " + " | ".join(SITUATIONS) + " |\n|---|" + "---|" * len(SITUATIONS))
    for workload in options.only:
        speeds: dict[str, list[float]] = {situation: [] for situation in SITUATIONS}
        for _ in range(options.rounds):
            for situation in SITUATIONS:
                speeds[situation].append(measure(workload, situation, options.seconds))
        alone = statistics.median(speeds["alone"])
        medians = [statistics.median(speeds[situation]) for situation in SITUATIONS]
        cells = [f"{speed:,.0f} ({speed / alone:.0%})" for speed in medians]
        print(f"| {workload} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
