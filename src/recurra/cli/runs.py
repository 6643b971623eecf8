"""`recurra runs`: list the run directories in a directory with their metrics."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from recurra.cli.parsing import parse
from recurra.cli.showing import json_line, safe_for_stdout
from recurra.errors import RunError


@dataclass(frozen=True, kw_only=True)
class Runs:
    """List the runs in a directory and its subdirectories, sorted by validation loss."""

    directory: tyro.conf.Positional[Path] = Path("runs")
    """Directory to search, including its subdirectories."""

    json: bool = False
    """Print one line of JSON per run."""


def run(arguments: Sequence[str]) -> int:
    """Print the runs and return the exit code."""
    command = parse(Runs, "runs", arguments)
    if not command.directory.is_dir():
        raise RunError(f"{command.directory} is not a directory")
    rows = sorted(_rows(command.directory), key=_by_loss)
    for row in rows:
        if command.json:
            print(json_line(row))
    if not command.json:
        _print_table(rows)
    return 0


def _rows(directory: Path) -> Iterator[dict[str, Any]]:
    from recurra.runs.directory import RunDirectory

    for file in sorted(directory.rglob("config.json")):
        run_directory = RunDirectory(file.parent)
        try:
            config = run_directory.read_config()
            best = run_directory.best_metrics()
        except RunError as error:
            logging.getLogger("recurra").warning("%s", error)
            continue
        yield {
            "run": str(file.parent),
            "text": " ".join(run_directory.read_sources()) or "english-story",
            "cell": config.model.cell,
            "hidden_size": config.model.hidden_size,
            "num_layers": config.model.num_layers,
            "step": best.get("step"),
            "seconds": best.get("seconds"),
            "val_nats": best.get("val_nats"),
            "bits_per_char": best.get("bits_per_char"),
            "perplexity": best.get("perplexity"),
        }


def _by_loss(row: dict[str, Any]) -> float:
    return float("inf") if row["val_nats"] is None else float(row["val_nats"])


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("run", "text", "model"):
        table.add_column(name, overflow="fold")
    for name in ("step", "seconds", "validation nats", "bits/char", "perplexity"):
        table.add_column(name, justify="right")
    for row in rows:
        model = f"{row['cell']} {row['num_layers']} x {row['hidden_size']}"
        figures = (row["val_nats"], row["bits_per_char"], row["perplexity"])
        table.add_row(
            safe_for_stdout(row["run"]),
            safe_for_stdout(row["text"]),
            model,
            "-" if row["step"] is None else f"{row['step']:,}",
            "-" if row["seconds"] is None else f"{row['seconds']:.0f}",
            *("-" if f is None else f"{f:.3f}" for f in figures),
        )
    # Output to a file or pipe is wide, so that paths are not wrapped. Markup and emoji codes are
    # disabled because a directory may be named [red] or :cat:.
    width = None if sys.stdout.isatty() else 240
    Console(highlight=False, markup=False, emoji=False, width=width).print(table)
