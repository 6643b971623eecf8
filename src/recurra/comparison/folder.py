"""A comparison on disk: what is compared, and the runs of it in folders of their own.

comparison.json     the text, the seeds, and what was given for each contender
NAME-SEED/          a run, like any other; see `training/run_folder.py`
results.json        the figures of all runs, when the last is done
comparison.svg      with --plot
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

from recurra.errors import RunError
from recurra.files import read_json, write_json
from recurra.training.run_folder import RunFolder


class ComparisonFolder:
    """The files of one comparison."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.description = self.path / "comparison.json"
        self.results = self.path / "results.json"
        self.picture = self.path / "comparison.svg"

    def begin(self, description: dict[str, Any], *, force: bool) -> bool:
        """Make the folder; True when this very comparison lies there already.

        With `force` another comparison goes, its runs included: they would count for this one.

        Raises:
            RunError: something else lies there, or another comparison and `force` is off.
        """
        if self.path.exists() and any(self.path.iterdir()):
            if not self.description.is_file():
                raise RunError(
                    f"{self.path} is not empty, and holds no comparison; name another --out"
                )
            before = read_json(self.description)
            if not force and before == description:
                return True
            if not force:
                raise RunError(
                    f"{self.path} holds a comparison of other settings; name another --out, or"
                    " replace it with --force"
                )
            self._remove_runs(before)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.description, description)
        return False

    def _remove_runs(self, description: dict[str, Any]) -> None:
        self.results.unlink(missing_ok=True)
        slugs = "|".join(re.escape(slug(name)) for name in description.get("contenders", {}))
        for run in map(RunFolder, self.path.iterdir()):
            if re.fullmatch(rf"({slugs})-\d+", run.path.name) and run.is_run:
                run.remove()

    def leave_if_nothing_came_of_it(self) -> None:
        """Remove what `begin` made, unless there is something else by now."""
        if list(self.path.iterdir()) == [self.description]:
            self.description.unlink()
            self.path.rmdir()

    def run(self, name: str, seed: int) -> RunFolder:
        """Where a contender's run of this seed lies."""
        return RunFolder(self.path / f"{slug(name)}-{seed}")


def slug(name: str) -> str:
    """A contender's name as a folder's: its letters and digits; file systems know no long ones."""
    whole = re.sub(r"\W+", "-", name).strip("-") or "contender"
    return whole if len(whole) <= 60 else f"{whole[:50]}-{zlib.crc32(whole.encode()):08x}"
