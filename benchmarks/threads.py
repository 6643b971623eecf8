"""Measure training steps of the compiled kernels and of torch.nn with 1, 2, 4, ... threads.

    python benchmarks/threads.py [--rows WORD ...] [--rounds 7] [--most N] [--json FILE]

Prints a Markdown table for the training rows of `recurra bench`, and for 16 rows, with which
threads have to share rows. Each number of threads is measured in a separate process; the last
column compares the largest number with two threads. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SHOWN = ("torch.nn, one-hot", "native, one-hot, fp32", "native, one-hot, bf16")


def chosen_rows(wanted: list[str]) -> list[Any]:
    """Return the training rows whose names contain all of these words."""
    from recurra.cli.benchmark_rows import ROWS, TrainingRow

    few = [TrainingRow(cell, 512, 65, 64, batch_size=16) for cell in ("rnn", "gru", "lstm")]
    training = [row for row in ROWS if isinstance(row, TrainingRow)]
    return [row for row in (*training, *few) if all(word in row.name for word in wanted)]


def thread_counts(most: int) -> list[int]:
    """Return the powers of two up to `most`, and `most` itself."""
    counts = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return counts if counts[-1] == most else [*counts, most]


def measure(wanted: list[str], threads: int, rounds: int) -> tuple[dict[str, Any], list[Any]]:
    """Measure in a new process; return a description of the machine and the measurements."""
    command = [sys.executable, __file__, "--rows", *wanted, "--rounds", str(rounds)]
    done = subprocess.run(
        [*command, "--only-threads", str(threads)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        # As `recurra bench` does: torch's OpenMP threads would spin on the cores of the kernels.
        env={"GOMP_SPINCOUNT": "1000", **os.environ},
    )
    machine, *records = map(json.loads, done.stdout.splitlines())
    return machine, [{**record, "threads": threads} for record in records]


def measure_here(words: list[str], threads: int, rounds: int) -> None:
    """Measure in this process with this number of threads, and print lines of JSON."""
    import torch

    from recurra.cli import benchmark
    from recurra.runtime.devices import num_threads, processor_name

    with num_threads(threads):
        print(json.dumps({"processor": processor_name(), "torch": torch.__version__}))
        for row in chosen_rows(words):
            for record in benchmark.measure(row, rounds, SHOWN):
                print(json.dumps(record))


def table(records: list[dict[str, Any]]) -> str:
    """Return a Markdown table of the milliseconds of a step, with a column per thread count."""
    counts = sorted({record["threads"] for record in records})
    found = {(r["row"], r["name"], r["threads"]): r["milliseconds"] for r in records}
    lines = [
        f"| row | computed by | {' | '.join(f'{n} threads' for n in counts)} | {counts[-1]} to 2 |",
        "|---|---|" + "---|" * (len(counts) + 1),
    ]
    for row, name in dict.fromkeys((r["row"], r["name"]) for r in records if r["name"] in SHOWN):
        times = [found[row, name, count] for count in counts]
        cells = [f"{time:.2f}" for time in times]
        cells.append(f"{found[row, name, 2] / times[-1]:.2f}" if 2 in counts else "")
        lines.append(f"| {row} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", nargs="*", default=[], help="only rows whose name contains these words"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--most", type=int, default=os.cpu_count() or 1, help="maximum number of threads"
    )
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    parser.add_argument("--only-threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_threads:
        measure_here(options.rows, options.only_threads, options.rounds)
        return 0
    records: list[dict[str, Any]] = []
    for threads in thread_counts(options.most):
        machine, measured = measure(options.rows, threads, options.rounds)
        records += measured
    print(f"{machine['processor']}, torch {machine['torch']}: milliseconds of a training step\n")
    print(table(records))
    if options.json:
        written = {"machine": machine, "records": records}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
