"""A comparison on disk: what is compared, and the runs of it in folders of their own.

comparison.json     the text, the seeds, and what was given for each contender
NAME-SEED/          a run, like any other; see `training/run_folder.py`
results.json        the figures of all runs, when the last is done
comparison.svg      with --plot
.lock               held by the process that compares
"""

from __future__ import annotations

import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recurra.errors import RunError
from recurra.files import UNFINISHED, make_folders, read_json, remove_empty, write_json
from recurra.training.run_folder import LOCK, RunFolder

STAGING = f".new{UNFINISHED}"
"""Where the first runs are prepared."""


class ComparisonFolder:
    """The files of one comparison."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.description = self.path / "comparison.json"
        self.results = self.path / "results.json"
        self.picture = self.path / "comparison.svg"

    def run(self, name: str, seed: int) -> RunFolder:
        """Where a contender's run of this seed lies."""
        return RunFolder(self.path / f"{slug(name)}-{seed}")

    def holds(self, description: dict[str, Any], *, force: bool) -> bool:
        """Whether this very comparison lies here; with `force` it is to begin anew.

        Raises:
            RunError: something else lies here, or another comparison and `force` is off.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; --out needs a folder")
        if not self.path.exists() or self._names() <= {LOCK, STAGING}:
            return False
        if not self.description.is_file():
            raise RunError(f"{self.path} is not empty, and holds no comparison; name another --out")
        if not force and read_json(self.description) != description:
            raise RunError(
                f"{self.path} holds a comparison of other settings; name another --out, or replace"
                " it with --force"
            )
        return not force

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that compares here; a folder that stays empty is removed.

        Raises:
            RunError: another process compares here.
        """
        made = make_folders(self.path)
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise RunError(f"{self.path} is in use: another process compares in it") from None
        try:
            yield
        finally:
            lock.release()
            if self._names() == {LOCK}:
                with suppress(OSError):  # somebody else has it by now
                    (self.path / LOCK).unlink()
                remove_empty(made)

    @contextmanager
    def prepared(self, description: dict[str, Any]) -> Iterator[ComparisonFolder]:
        """Yield a folder to prepare the first runs in; at the end of the block they come here, and
        an older comparison goes, all its runs included: they would count for this one.

        When the block fails, what was here is as it was.

        Raises:
            RunError: a run that has to go cannot, or something else is in the way of a new one.
        """
        staging = ComparisonFolder(self.path / STAGING)
        shutil.rmtree(staging.path, ignore_errors=True)  # of a process that was killed
        staging.path.mkdir()
        try:
            yield staging
            self._take(staging, description)
        finally:
            shutil.rmtree(staging.path, ignore_errors=True)

    def _take(self, staging: ComparisonFolder, description: dict[str, Any]) -> None:
        older = self._older_runs()
        paths, new = [run.path for run in older], sorted(staging.path.iterdir())
        for path in (self.path / run.name for run in new):
            if path.exists() and path not in paths:
                raise RunError(f"{path} is in the way, and not of the comparison that lies there")
        for run in older:
            run.remove()
        self.results.unlink(missing_ok=True)
        self.picture.unlink(missing_ok=True)
        # Before the runs: whoever finds some of them missing makes them.
        write_json(self.description, description)
        for path in new:
            path.rename(self.path / path.name)

    def _names(self) -> set[str]:
        return {path.name for path in self.path.iterdir()}

    def _older_runs(self) -> list[RunFolder]:
        """Those of the comparison that lies here."""
        if not self.description.is_file():
            return []
        contenders = read_json(self.description).get("contenders", {})
        slugs = "|".join(re.escape(slug(name)) for name in contenders)
        runs = [RunFolder(path) for path in sorted(self.path.iterdir())]
        return [r for r in runs if re.fullmatch(rf"({slugs})-\d+", r.path.name) and r.is_run]


def slug(name: str) -> str:
    """A contender's name as a folder's: its letters and digits; file systems know no long ones."""
    whole = re.sub(r"\W+", "-", name).strip("-") or "contender"
    return whole if len(whole) <= 60 else f"{whole[:50]}-{zlib.crc32(whole.encode()):08x}"
