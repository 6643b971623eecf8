"""`recurra bench`: training and generation throughput compared with torch.nn."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from recurra.cli.parsing import parse
from recurra.cli.showing import json_line
from recurra.errors import ConfigError
from recurra.io.markdown import table

if TYPE_CHECKING:
    from recurra.cli.benchmark_rows import GenerationRow, TrainingRow


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure training and generation throughput of each backend and of torch.nn.

    A training step includes the forward and backward pass, gradient clipping and the update. The
    measurements of a row are interleaved. Avoid other load on the machine during the benchmark. The
    result is printed as Markdown tables.
    """

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """Run only the rows whose name contains all of these words, for example lstm 512, or
    generation."""

    rounds: int = 15
    """Number of measurements per row; the median is reported."""

    threads: int | None = None
    """Number of CPU threads; by default, one per physical core that the process may use (see
    `recurra doctor`)."""

    json: bool = False
    """Print one line of JSON that describes the machine, then one per measurement."""


def run(arguments: Sequence[str]) -> int:
    """Measure, print the results, and return the exit code."""
    command = parse(Bench, "bench", arguments)
    if command.rounds < 1:
        raise ConfigError(f"rounds must be at least 1, not {command.rounds}")
    if command.threads is not None and command.threads < 1:
        raise ConfigError(f"threads must be at least 1, not {command.threads}")
    from recurra.cli.benchmark_rows import chosen_rows
    from recurra.runtime.devices import num_threads

    rows = chosen_rows(command.words)
    with num_threads(command.threads):
        _measure(rows, command)
    return 0


def _measure(rows: Sequence[TrainingRow | GenerationRow], command: Bench) -> None:
    """Measure the rows and print the results."""
    from recurra.cli import benchmark

    machine = _machine()
    print(json_line(machine) if command.json else _describe(machine), flush=True)
    for row in rows:
        print(f"{row.name} ...", file=sys.stderr, flush=True)
        records = list(benchmark.measure(row, command.rounds))
        if command.json:
            for record in records:
                print(json_line(record), flush=True)
        else:
            _print_table(row, records)


def _machine() -> dict[str, Any]:
    import torch

    import recurra
    from recurra.cli.benchmark import product_gflops
    from recurra.kernels import library, matmul_selection
    from recurra.runtime import cores
    from recurra.runtime.devices import processor_name

    has_kernels = library.is_available()
    return {
        "recurra": recurra.__version__,
        "torch": torch.__version__,
        "processor": processor_name(),
        "threads": cores.threads(),
        "kernels": has_kernels,
        "bf16_matmul": matmul_selection.matmul_kernels().bf16 if has_kernels else None,
        "product_gflops": product_gflops(),
    }


def _describe(machine: dict[str, Any]) -> str:
    from recurra.kernels.matmul_selection import DESCRIPTIONS

    speeds = machine["product_gflops"]
    shown = ", ".join(f"{speed:.0f} in {precision}" for precision, speed in speeds.items())
    bf16 = machine["bf16_matmul"]
    kernels = f", bf16 by {DESCRIPTIONS[bf16]}" if bf16 else ", without compiled kernels"
    return (
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']},"
        f" recurra {machine['recurra']}{kernels}; matrix product in GFLOP/s:"
        f" {shown}\n\nspread: interquartile range divided by the median;"
        " % of matmul: GFLOP/s relative to the matrix product in the same precision; times faster:"
        " speed relative to torch.nn with the same input"
    )


def _print_table(row: TrainingRow | GenerationRow, records: list[dict[str, Any]]) -> None:
    head = ("", "ms", "spread", "tokens/s", "GFLOP/s", "% of matmul", "times faster")
    lines = [
        (
            record["name"],
            f"{record['milliseconds']:.{3 if record['milliseconds'] < 1 else 2}f}",
            f"{record['spread']:.0%}",
            f"{record['tokens_per_second']:,.0f}",
            f"{record['gflops']:.0f}",
            f"{record['share']:.0%}",
            f"{record['times_faster']:.2f}",
        )
        for record in records
    ]
    print(f"\n**{row.name}**\n\n{table(head, lines)}", flush=True)
