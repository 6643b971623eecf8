"""`recurra runs`: list, delete and move run directories."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from recurra.cli.parsing import parse
from recurra.cli.showing import json_line, safe_for_stdout
from recurra.errors import ConfigError, RunError

if TYPE_CHECKING:
    from recurra.runs.directory import RunDirectory
    from recurra.runs.organizing import RunSummary

_logger = logging.getLogger("recurra")


@dataclass(frozen=True, kw_only=True)
class Runs:
    """List, delete or move runs.

    recurra runs [DIRECTORY] lists the runs in a directory (runs by default) and its subdirectories,
    sorted by validation loss.

    recurra runs rm RUN ... deletes runs.

    recurra runs mv RUN TARGET renames a run, or moves it into an existing directory.

    recurra runs prune [DIRECTORY] --keep N deletes all but the N runs with the lowest validation
    loss on each text. Runs of comparisons are kept.

    rm and prune list what they delete and ask for confirmation.
    """

    arguments: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[DIRECTORY or ACTION ...]"),
    ] = ()
    """A directory, or an action with its arguments. For a directory named rm, mv or prune,
    type ./rm, ./mv or ./prune."""

    keep: int | None = None
    """prune: number of runs to keep on each text."""

    yes: bool = False
    """rm, prune: do not ask for confirmation."""

    json: bool = False
    """Print one line of JSON per listed run."""


def run(arguments: Sequence[str]) -> int:
    """Run the action and return the exit code."""
    command = parse(Runs, "runs", arguments)
    action, *others = command.arguments or ("",)
    if command.keep is not None and action != "prune":
        raise ConfigError("--keep applies only to recurra runs prune; remove it")
    if command.yes and action not in ("rm", "prune"):
        raise ConfigError("--yes applies only to recurra runs rm and prune; remove it")
    if command.json and action in _ACTIONS:
        raise ConfigError("--json applies only to the list of runs; remove it")
    if action in _ACTIONS:
        return _ACTIONS[action](command, [Path(argument) for argument in others])
    if others:
        raise ConfigError(
            f"{action!r} is not an action; type recurra runs rm, mv or prune with its arguments, or"
            " a single directory"
        )
    return _list(command, Path(action or "runs"))


def _list(command: Runs, folder: Path) -> int:
    runs = sorted(_summaries(folder), key=lambda run: run.loss)
    if command.json:
        for summary in runs:
            print(json_line(_record(summary)))
    else:
        _print_table(runs)
    return 0


def _remove(command: Runs, paths: Sequence[Path]) -> int:
    from recurra.runs.directory import RunDirectory

    if not paths:
        raise ConfigError("rm needs a run: recurra runs rm RUN ...")
    different = {path.resolve(): path for path in paths if not path.is_symlink()}
    different |= {path: path for path in paths if path.is_symlink()}
    return _delete([RunDirectory(path) for path in different.values()], yes=command.yes)


def _move(command: Runs, paths: Sequence[Path]) -> int:
    from recurra.report.progress import one_line
    from recurra.runs.directory import RunDirectory
    from recurra.runs.organizing import move_run

    if len(paths) != 2:
        raise ConfigError("mv needs a run and its new path: recurra runs mv RUN TARGET")
    place = move_run(RunDirectory(paths[0]), paths[1])
    print(f"moved {one_line(str(paths[0]))} to {one_line(str(place))}")
    return 0


def _prune(command: Runs, paths: Sequence[Path]) -> int:
    from recurra.runs.organizing import all_but_best, check_movable

    if len(paths) > 1:
        raise ConfigError("prune takes one directory: recurra runs prune DIRECTORY --keep N")
    if command.keep is None or command.keep < 1:
        raise ConfigError("prune needs --keep with the number of runs to keep on each text")
    free = []
    for summary in _summaries(*(paths or [Path("runs")])):
        try:
            check_movable(summary.directory)
            free.append(summary)
        except RunError as error:
            _logger.warning("kept: %s", error)
    found = all_but_best(free, command.keep)
    if not found:
        print(f"no text has more than {command.keep} runs", file=sys.stderr)
        return 0
    return _delete([summary.directory for summary in found], yes=command.yes)


_ACTIONS: dict[str, Callable[[Runs, Sequence[Path]], int]] = {
    "rm": _remove,
    "mv": _move,
    "prune": _prune,
}


def _delete(directories: Sequence[RunDirectory], *, yes: bool) -> int:
    """Delete runs after confirmation, and return the exit code."""
    from recurra.report.folders import format_bytes
    from recurra.report.progress import one_line
    from recurra.runs.organizing import check_movable, delete_run, size_of

    for directory in directories:
        check_movable(directory)
    if not yes:
        _require_terminal()
    sizes = [size_of(directory) for directory in directories]
    for directory, size in zip(directories, sizes, strict=True):
        print(f"{format_bytes(size):>10}  {one_line(str(directory.path))}", file=sys.stderr)
    count = f"{len(directories)} run{'s' if len(directories) > 1 else ''}"
    if not yes and not _is_confirmed(f"delete {count}, {format_bytes(sum(sizes))}?"):
        print("nothing was deleted", file=sys.stderr)
        return 1
    for directory in directories:
        delete_run(directory)
    print(f"deleted {count}")
    return 0


def _require_terminal() -> None:
    """Raise ConfigError if stdin is not a terminal, where confirmation is impossible."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError("stdin is not a terminal, so confirmation is impossible; specify --yes")


def _is_confirmed(question: str) -> bool:
    """Ask a question on the terminal; anything but y or yes is a no."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _summaries(folder: Path) -> Iterator[RunSummary]:
    from recurra.runs.organizing import find_runs, summarize

    if not folder.is_dir():
        raise RunError(f"{folder} is not a directory")
    for directory in find_runs(folder):
        try:
            yield summarize(directory)
        except RunError as error:
            _logger.warning("%s", error)


def _record(run: RunSummary) -> dict[str, Any]:
    base = run.directory.read_provenance().base
    return {
        "run": str(run.directory.path),
        "text": run.text,
        "base": None if base is None else base.get("run"),
        "cell": run.config.model.cell,
        "hidden_size": run.config.model.hidden_size,
        "num_layers": run.config.model.num_layers,
        "steps": run.steps,
        "seconds": run.seconds,
        "finished": run.is_finished,
        "best_step": run.best.get("step"),
        "val_nats": run.best.get("val_nats"),
        "bits_per_char": run.best.get("bits_per_char"),
        "perplexity": run.best.get("perplexity"),
    }


def _print_table(runs: Sequence[RunSummary]) -> None:
    from rich.console import Console
    from rich.table import Table

    from recurra.report.progress import format_seconds

    table = Table(box=None, pad_edge=False)
    for name in ("run", "text", "model"):
        table.add_column(name, overflow="fold")
    figures = ("validation nats", "bits/char", "perplexity")
    for name in ("steps", "time", "state", *figures, "at step"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for run in runs:
        best = [run.best.get(name) for name in ("val_nats", "bits_per_char", "perplexity")]
        step = run.best.get("step")
        model = run.config.model
        table.add_row(
            safe_for_stdout(str(run.directory.path)),
            safe_for_stdout(run.text),
            f"{model.cell} {model.num_layers} x {model.hidden_size}",
            f"{run.steps:,}",
            "-" if run.seconds is None else format_seconds(run.seconds),
            "finished" if run.is_finished else "unfinished",
            *("-" if figure is None else f"{figure:.3f}" for figure in best),
            "-" if step is None else f"{step:,}",
        )
    # Output to a file or pipe is wide, so that paths are not wrapped. Markup and emoji codes are
    # disabled because a directory may be named [red] or :cat:.
    width = None if sys.stdout.isatty() else 240
    Console(highlight=False, markup=False, emoji=False, width=width).print(table)
