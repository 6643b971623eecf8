"""`recurra bench`: training and generation throughput compared with torch.nn."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from recurra.cli.parsing import parse
from recurra.errors import ConfigError
from recurra.io.markdown import table

if TYPE_CHECKING:
    from recurra.cli.benchmark import TrainingRow, WritingRow


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure whole training steps and generation of each backend and of torch.nn.

    The measurements of a row are interleaved. Run nothing else meanwhile. Prints Markdown.
    """

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """Only the rows that have these words in their name: lstm 512, say, or write."""

    rounds: int = 15
    """How often each is measured; the median is shown."""

    threads: int | None = None
    """How many threads compute; by default torch's choice."""

    json: bool = False
    """Print a line of JSON for each measurement, the machine's first."""


def run(arguments: Sequence[str]) -> int:
    """Measure and print."""
    command = parse(Bench, "bench", arguments)
    if command.rounds < 1:
        raise ConfigError(f"rounds must be at least 1, not {command.rounds}")
    if command.threads is not None and command.threads < 1:
        raise ConfigError(f"threads must be at least 1, not {command.threads}")
    import torch

    from recurra.cli import benchmark

    if command.threads is not None:
        torch.set_num_threads(command.threads)
    rows = benchmark.chosen_rows(command.words)
    machine = _machine()
    print(json.dumps(machine) if command.json else _describe(machine), flush=True)
    for row in rows:
        print(f"{row.name} ...", file=sys.stderr, flush=True)
        records = list(benchmark.measure(row, command.rounds))
        if command.json:
            for record in records:
                print(json.dumps(record), flush=True)
        else:
            _print_table(row, records)
    return 0


def _machine() -> dict[str, Any]:
    import torch

    import recurra
    from recurra.cli.benchmark import product_gflops
    from recurra.kernels import library
    from recurra.runtime.devices import processor_name

    return {
        "recurra": recurra.__version__,
        "torch": torch.__version__,
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "kernels": library.is_available(),
        "product_gflops": product_gflops(),
    }


def _describe(machine: dict[str, Any]) -> str:
    fp32, bf16 = machine["product_gflops"].values()
    kernels = "" if machine["kernels"] else ", without compiled kernels"
    return (
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']},"
        f" recurra {machine['recurra']}{kernels}; its matrix product: {fp32:.0f} GFLOP/s in fp32,"
        f" {bf16:.0f} in bf16\n\nspread: distance of the quartiles; of the product: GFLOP/s against"
        " that product in the same precision; times faster: than torch.nn on the same input"
    )


def _print_table(row: TrainingRow | WritingRow, records: list[dict[str, Any]]) -> None:
    head = ("", "ms", "spread", "tokens/s", "GFLOP/s", "of the product", "times faster")
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
