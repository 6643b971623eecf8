"""The directory of a comparison: its settings and its runs.

comparison.json     the sources, the seeds, and the given options of each variant
NAME-SEED/          a run directory; see `runs/directory.py`
results.json        the metrics of all runs and the significance tests, after the last run
comparison.svg      the loss curves, with --plot
.lock               held by the process that runs the comparison
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recurra.errors import RunError
from recurra.io.files import (
    CHOOSE_ANOTHER_OUT,
    UNFINISHED,
    make_folders,
    permission_errors_explained,
    remove_empty,
    remove_unfinished,
)
from recurra.io.json_files import read_json, write_json
from recurra.runs.directory import LOCK, RunDirectory
from recurra.runs.staging import check_removable
from recurra.text.folders import COMPARISON_FILES

STAGING, READY, ASIDE = (f".comparison-{name}{UNFINISHED}" for name in ("new", "ready", "old"))
"""Subdirectories during replacement: runs in preparation, prepared runs, and the old comparison."""


class ComparisonFolder:
    """The files of one comparison."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.description, self.results, self.plot = (self.path / name for name in COMPARISON_FILES)

    def run(self, name: str, seed: int) -> RunDirectory:
        """Return the directory of the run of a variant with this seed."""
        return RunDirectory(self.path / f"{slug(name)}-{seed}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the directory, and complete or undo an interrupted replacement.

        Raises:
            RunError: another process uses the directory, the path is not a directory, or the
                directory cannot be written to.
        """
        if (self.path.exists() or self.path.is_symlink()) and not self.path.is_dir():
            raise RunError(f"{self.path} is not a directory; choose another --out")
        lock = FileLock(self.path / LOCK)
        try:
            with permission_errors_explained(self.path, CHOOSE_ANOTHER_OUT):
                made = make_folders(self.path)
                lock.acquire(blocking=False)
        except Timeout:
            raise RunError(f"{self.path} is in use by another process") from None
        try:
            self._settle()
            yield
        finally:
            if not self.description.exists():
                with suppress(OSError):  # Windows cannot remove an open file; releasing it does.
                    (self.path / LOCK).unlink()
            lock.release()
            remove_empty(made)

    def holds(self, description: dict[str, Any], *, force: bool) -> bool:
        """Return whether the directory contains this comparison, so that it can be resumed.

        A comparison with more seeds than the one in the directory extends it, and its description
        is written. With `force`, the comparison is not resumed, and the result is False.

        Raises:
            RunError: the directory contains something else, or another comparison without `force`.
        """
        if {path.name for path in self.path.iterdir()} <= {LOCK}:
            return False
        if not self.description.is_file():
            raise RunError(
                f"{self.path} is not empty and is not a comparison; choose another --out"
            )
        if force:
            self._old_runs()
            return False
        stored = self._read_description()
        if {**stored, "seeds": description["seeds"]} != description:
            raise RunError(
                f"{self.path} contains a comparison with other settings; choose another --out, or"
                " replace it with --force"
            )
        if stored["seeds"] > description["seeds"]:
            raise RunError(
                f"{self.path} contains a comparison with {stored['seeds']} seeds; use as many or"
                " more, choose another --out, or replace it with --force"
            )
        if stored != description:
            write_json(self.description, description)
        return True

    @contextmanager
    def prepared(self, description: dict[str, Any]) -> Iterator[ComparisonFolder]:
        """Yield a staging directory for the first runs, and move them here on exit.

        An existing comparison is replaced together with all of its runs, because they would
        otherwise count as runs of the new one. On failure, the directory is left unchanged.

        Raises:
            RunError: an old run cannot be removed, or the name of a new run is taken by something
                else.
        """
        staging = ComparisonFolder(self.path / STAGING)
        staging.path.mkdir()
        try:
            yield staging
            old = self._old_runs()
            self._check_exchange(old, [path.name for path in staging.path.iterdir()])
            write_json(staging.description, description)
            staging.path.rename(self.path / READY)
            self._exchange([run.path for run in old])
        finally:
            self._settle()

    def _check_exchange(self, old: list[RunDirectory], new: list[str]) -> None:
        names = [run.path.name for run in old]
        for path in (self.path / name for name in new):
            if path.exists() and path.name not in names:
                raise RunError(f"{path} exists but is not a run of this comparison; move it away")
        for run in old:
            check_removable(run)

    def _exchange(self, old: list[Path]) -> None:
        """Replace the old comparison by renaming only.

        The replacement takes effect when the new description is renamed into place.
        """
        aside, ready = self.path / ASIDE, ComparisonFolder(self.path / READY)
        aside.mkdir()
        for path in (*old, self.results, self.plot, self.description):
            if path.exists():
                path.rename(aside / path.name)
        ready.description.rename(self.description)

    def _settle(self) -> None:
        """Complete an interrupted exchange, or undo it if the new description is not in place."""
        aside, ready = self.path / ASIDE, self.path / READY
        if (ready / self.description.name).exists():
            _move_all(aside, self.path)
            ready.rename(self.path / STAGING)
        else:
            _move_all(ready, self.path)
        for names in ("comparison-*", *(f"{name}.*" for name in COMPARISON_FILES)):
            remove_unfinished(self.path, names)

    def _read_description(self) -> dict[str, Any]:
        description = read_json(self.description)
        if "contenders" in description:  # The name of the key in version 0.1.
            description["variants"] = description.pop("contenders")
        return description

    def _old_runs(self) -> list[RunDirectory]:
        """Return the runs of the existing comparison.

        Raises:
            RunError: the description is damaged.
        """
        if not self.description.is_file():
            return []
        variants = self._read_description().get("variants", {})
        if not isinstance(variants, dict):
            raise RunError(f"{self.description} is damaged: variants is not an object")
        slugs = "|".join(re.escape(slug(name)) for name in variants)
        runs = [RunDirectory(path) for path in sorted(self.path.iterdir())]
        return [r for r in runs if re.fullmatch(rf"({slugs})-\d+", r.path.name) and r.is_run]


def _move_all(source: Path, target: Path) -> None:
    if source.is_dir():
        for path in sorted(source.iterdir()):
            path.rename(target / path.name)


def slug(name: str) -> str:
    """Return a directory name for a variant: its letters and digits, at most 60 bytes."""
    # The fallback name is the one of version 0.1, because stored comparisons contain it.
    whole = re.sub(r"\W+", "-", name).strip("-") or "contender"
    data = whole.encode()
    if len(data) <= 60:
        return whole
    return f"{data[:50].decode(errors='ignore')}-{zlib.crc32(data):08x}"
