"""Find, describe, delete and move the runs on disk.

The files of a run refer to each other by names within their directory, so a run can be moved and
copied like any directory. The functions here also check that no process is training in it.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recurra.config import RunConfig
from recurra.data.token_file import load_token_file
from recurra.errors import RunError
from recurra.runs.checkpoint_store import name_of, step_of
from recurra.runs.directory import RunDirectory
from recurra.runs.staging import check_removable
from recurra.text.folders import COMPARISON_FILES
from recurra.text.sources import source_names


@dataclass(frozen=True)
class RunSummary:
    """A run on disk, and its progress.

    Attributes:
        directory: the run directory.
        config: its settings.
        steps: number of updates so far.
        seconds: duration of the run up to the last evaluation; None before the first one.
        is_finished: whether the budget is spent.
        best: the record of metrics.jsonl with the lowest validation loss; {} without any.
    """

    directory: RunDirectory
    config: RunConfig
    steps: int
    seconds: float | None
    is_finished: bool
    best: dict[str, float | int | None]

    @property
    def loss(self) -> float:
        """The lowest validation loss in nats per token; infinite if there is none."""
        loss = self.best.get("val_nats")
        return float("inf") if loss is None else float(loss)

    @property
    def text(self) -> str:
        """The sources of the text."""
        return " ".join(source_names(self.directory.read_sources()))


def summarize(directory: RunDirectory) -> RunSummary:
    """Return a summary of a run.

    Raises:
        RunError: the directory contains no run, or a file is damaged.
    """
    config, records = directory.read_config(), directory.read_metrics()
    names = directory.checkpoints.names()
    last = records[-1] if records else {}
    steps = max([int(last.get("step", 0)), *map(step_of, names)])
    is_finished = any(name == name_of(step_of(name), final=True) for name in names[-1:])
    # `LanguageModel.save` writes a model without checkpoints; it cannot train further.
    is_finished |= not names and directory.model.is_file()
    best = directory.best_metrics()
    return RunSummary(directory, config, steps, last.get("seconds"), is_finished, best)


def find_runs(folder: Path) -> Iterator[RunDirectory]:
    """Yield the run directories below a directory, sorted by path."""
    for file in sorted(folder.rglob("config.json")):
        yield RunDirectory(file.parent)


def size_of(directory: RunDirectory) -> int:
    """Return the size of all files of a run in bytes."""
    return sum(file.lstat().st_size for file in directory.path.rglob("*") if file.is_file())


def check_movable(directory: RunDirectory) -> None:
    """Check that a run can be deleted or moved.

    Raises:
        RunError: the directory contains no run or other files than those of a run, a process is
            training in it, or it belongs to a comparison.
    """
    if directory.path.is_symlink():
        raise RunError(
            f"{directory.path} is a symbolic link to {directory.path.resolve()}; specify the run"
            " itself"
        )
    if not directory.is_run:
        hint = ""
        if (directory.path / COMPARISON_FILES[0]).is_file():
            hint = "; it is a comparison, which can be deleted and moved like any directory"
        raise RunError(f"{directory.path} is not a run directory{hint}")
    if directory.path.resolve() == Path.cwd():
        raise RunError(f"{directory.path} is the current directory; leave it first")
    comparison = directory.path.resolve().parent
    if (comparison / COMPARISON_FILES[0]).is_file():
        raise RunError(
            f"{directory.path} belongs to the comparison in {comparison}, which needs all of its"
            " runs; delete or move the whole directory instead"
        )
    check_removable(directory)


def delete_run(directory: RunDirectory) -> None:
    """Delete a run.

    Raises:
        RunError: as for `check_movable`.
    """
    check_movable(directory)
    shutil.rmtree(directory.path)


def move_run(directory: RunDirectory, target: Path) -> Path:
    """Move a run, and return its new path: `target`, or a directory in it if it exists.

    Raises:
        RunError: as for `check_movable`; or the new path exists, or its parent does not.
    """
    check_movable(directory)
    is_container = target.is_dir() and not RunDirectory(target).is_run
    place = target / directory.path.resolve().name if is_container else target
    if (place.parent / COMPARISON_FILES[0]).is_file():
        raise RunError(f"{place.parent} is a comparison; choose another directory")
    if place.exists() or place.is_symlink():
        raise RunError(f"{place} already exists; choose another name")
    if not place.parent.is_dir():
        raise RunError(f"{place.parent} is not a directory; create it, or choose another name")
    source = directory.path.resolve()
    if place.resolve().is_relative_to(source):
        raise RunError(f"{place} is inside {directory.path}; choose another name")
    shutil.move(source, place)
    return place


def all_but_best(runs: Sequence[RunSummary], keep: int) -> list[RunSummary]:
    """Return all but the best `keep` runs on each text, the worst last.

    Only runs that predict the same tokens are compared, because losses on different texts or with
    different kinds of tokens are not comparable. A run without an evaluation is the worst. The
    losses of runs with a time budget that was too short for the whole validation split are those of
    its first part.
    """
    groups: dict[str, list[RunSummary]] = defaultdict(list)
    for run in runs:
        groups[_tokens_of(run)].append(run)
    found: list[RunSummary] = []
    for group in groups.values():
        found += sorted(group, key=lambda run: run.loss)[keep:]
    return found


def _tokens_of(run: RunSummary) -> str:
    """Return what the runs that can be compared have in common."""
    path = run.directory.path
    try:
        tokens = load_token_file(path)
    except RunError:
        return str(path.resolve())  # Only the model was saved.
    return f"{tokens.tokens_sha256} {tokens.num_train} {tokens.vocabulary_fingerprint}"
