"""The directory of a comparison: its settings and its runs.

comparison.json     the text, the seeds, and the given options of each variant
NAME-SEED/          a run, like any other; see `runs/directory.py`
results.json        the figures of all runs, when the last is done
comparison.svg      with --plot
.lock               held by the process that compares
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
    UNFINISHED,
    make_folders,
    read_json,
    remove_empty,
    remove_unfinished,
    write_json,
)
from recurra.runs.directory import LOCK, RunDirectory
from recurra.text.sources import COMPARISON_FILES

STAGING, READY, ASIDE = (f".comparison-{name}{UNFINISHED}" for name in ("new", "ready", "old"))
"""Where the first runs are prepared, where they wait, and where an older comparison does."""


class ComparisonFolder:
    """The files of one comparison."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.description, self.results, self.picture = (
            self.path / name for name in COMPARISON_FILES
        )

    def run(self, name: str, seed: int) -> RunDirectory:
        """Return the directory of the run of a variant with this seed."""
        return RunDirectory(self.path / f"{slug(name)}-{seed}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that compares here; what a killed one left half done is settled.

        Raises:
            RunError: another process compares here, or the folder cannot be one.
        """
        if (self.path.exists() or self.path.is_symlink()) and not self.path.is_dir():
            raise RunError(f"{self.path} is no folder; --out needs one")
        made = make_folders(self.path)
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise RunError(f"{self.path} is in use: another process compares in it") from None
        try:
            self._settle()
            yield
        finally:
            if not self.description.exists():
                with suppress(OSError):  # Windows removes no open file, but this one on release
                    (self.path / LOCK).unlink()
            lock.release()
            remove_empty(made)

    def holds(self, description: dict[str, Any], *, force: bool) -> bool:
        """Whether this very comparison lies here; with `force` it is to begin anew.

        Raises:
            RunError: something else lies here, or another comparison and `force` is off.
        """
        if {path.name for path in self.path.iterdir()} <= {LOCK}:
            return False
        if not self.description.is_file():
            raise RunError(f"{self.path} is not empty, and holds no comparison; name another --out")
        if not force and self._read_description() != description:
            raise RunError(
                f"{self.path} holds a comparison of other settings; name another --out, or replace"
                " it with --force"
            )
        if force:
            self._older_runs()
        return not force

    @contextmanager
    def prepared(self, description: dict[str, Any]) -> Iterator[ComparisonFolder]:
        """Yield a folder to prepare the first runs in; at the end of the block they come here, and
        an older comparison goes, all its runs included: they would count for this one.

        When anything fails, what was here is as it was.

        Raises:
            RunError: a run that has to go cannot, or something else is in the way of a new one.
        """
        staging = ComparisonFolder(self.path / STAGING)
        staging.path.mkdir()
        try:
            yield staging
            older = self._older_runs()
            self._check_exchange(older, [path.name for path in staging.path.iterdir()])
            write_json(staging.description, description)
            staging.path.rename(self.path / READY)
            self._exchange([run.path for run in older])
        finally:
            self._settle()

    def _check_exchange(self, older: list[RunDirectory], new: list[str]) -> None:
        names = [run.path.name for run in older]
        for path in (self.path / name for name in new):
            if path.exists() and path.name not in names:
                raise RunError(f"{path} is in the way; it is no run of the comparison here")
        for run in older:
            run.check_removable()

    def _exchange(self, older: list[Path]) -> None:
        """Nothing but renaming: at the moment when the description comes in, the new one counts."""
        aside, ready = self.path / ASIDE, ComparisonFolder(self.path / READY)
        aside.mkdir()
        for path in (*older, self.results, self.picture, self.description):
            if path.exists():
                path.rename(aside / path.name)
        ready.description.rename(self.description)

    def _settle(self) -> None:
        """Bring an exchange to its end, or, before the new description is in, undo it."""
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

    def _older_runs(self) -> list[RunDirectory]:
        """Those of the comparison that lies here."""
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
    """Return the name of a directory for a variant: its letters and digits, not too long."""
    whole = (
        re.sub(r"\W+", "-", name).strip("-") or "contender"
    )  # Stored comparisons have this name.
    data = whole.encode()
    if len(data) <= 60:
        return whole
    return f"{data[:50].decode(errors='ignore')}-{zlib.crc32(data):08x}"
