"""Prepare a run in a temporary directory beside its final one, and replace an older run.

The final directory changes only by renaming, after the new run is complete.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from recurra.errors import RunError
from recurra.io import files
from recurra.io.files import UNFINISHED
from recurra.runs.checkpoint_store import is_name
from recurra.runs.directory import JOB, LOCK, TOKEN_FILES, RunDirectory


@contextmanager
def staged_run(directory: RunDirectory, *, force: bool) -> Iterator[RunDirectory]:
    """Yield a temporary directory in which a new run is prepared.

    At the end of the block the temporary directory replaces this one and remains locked. If the
    block fails, the temporary directory is removed and this one is unchanged.

    Args:
        force: whether to replace an older run. The files of its token file are linked into the
            temporary directory, so that they can be reused for the same text and settings.

    Raises:
        RunError: if the directory is not empty and `force` is False; or if it contains other
            files than those of a run, another process is training in it, or it cannot be created.
    """
    place = directory.path.resolve()
    remove_unfinished(directory)
    _check_free(directory, force=force)
    # A signal can arrive at any time: the names are known before a directory is created.
    made = files.missing_folders(place.parent)
    staging = RunDirectory(place.with_name(f".{place.name}-{secrets.token_hex(4)}{UNFINISHED}"))
    try:
        with files.permission_errors_explained(place.parent, files.CHOOSE_ANOTHER_OUT):
            files.make_folders(place.parent)
            staging.path.mkdir(mode=0o700)
        with staging.locked(), ExitStack() as old:
            is_locked = _lock_old_run(directory, old)
            for name in TOKEN_FILES:
                if (place / name).is_file():
                    files.link_or_copy(place / name, staging.path / name)
            with files.errors_name_final_path(staging.path, directory.path):
                yield staging
            # Another process could have created a run while the text was read.
            _check_free(directory, force=force)
            if not is_locked:
                _lock_old_run(directory, old)
            # Until now, only the owner had access; the umask applies to a run.
            staging.path.chmod(0o777 & ~files.umask())
            _replace(directory, staging)
    finally:
        shutil.rmtree(staging.path, ignore_errors=True)
        files.remove_empty(made)


def remove_unfinished(directory: RunDirectory) -> None:
    """Remove the unfinished files of killed processes in this directory and beside it."""
    place = directory.path.resolve()
    if (aside := _aside(place)).is_dir():
        # A process was killed while it replaced an older run (--force).
        if place.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(place)
    # Exactly the eight characters of `staged_run`, not runs whose names begin like this one's.
    name = re.compile(rf"\.{re.escape(place.name)}-\w{{8}}{re.escape(UNFINISHED)}")
    if place.parent.is_dir():
        for staging in place.parent.iterdir():
            if name.fullmatch(staging.name):
                _remove_if_abandoned(staging)
    if place.is_dir():
        files.remove_unfinished(place)


def check_removable(directory: RunDirectory) -> None:
    """Check that the directory contains only run files and is not locked by another process.

    Raises:
        RunError: if it contains other files, or another process is training in it.
    """
    _check_free(directory, force=True)
    with directory.locked():
        pass


def _check_free(directory: RunDirectory, *, force: bool) -> None:
    if not directory.path.exists():
        return
    if not directory.path.is_dir():
        raise RunError(f"{directory.path} is a file; --out must be a directory")
    if directory.path.resolve() == Path.cwd():
        raise RunError(f"{directory.path} is the current directory; choose another --out")
    if not any(directory.path.iterdir()):
        return
    if not directory.is_run:
        raise RunError(f"{directory.path} is not a run directory; choose another --out")
    if not force:
        raise RunError(
            f"{directory.path} already exists; choose another --out, or replace it with --force"
            " (from Python: force=True)"
        )
    paths = (p for p in directory.path.rglob("*") if not p.is_dir())
    foreign = sorted(
        str(p.relative_to(directory.path)) for p in paths if not _is_run_file(directory, p)
    )
    if foreign:
        raise RunError(
            f"{directory.path} contains {foreign[0]}, which is not a file of a run, so the"
            " directory is not removed"
        )


def _is_run_file(directory: RunDirectory, file: Path) -> bool:
    named = {directory.config, directory.model, directory.initial, directory.curve}
    named |= {directory.losses, *directory.histories()}
    named |= {directory.path / name for name in TOKEN_FILES}
    if file.name.startswith("."):
        return file.name in (LOCK, JOB) or file.name.endswith(UNFINISHED)
    is_checkpoint = file.parent.parent == directory.checkpoints.folder and is_name(file.parent.name)
    return file in named or is_checkpoint or file.parent.name.endswith(UNFINISHED)


def _lock_old_run(directory: RunDirectory, stack: ExitStack) -> bool:
    """Hold the lock of the older run until the stack is closed; return whether there is one.

    Raises:
        RunError: another process is training in it.
    """
    if not directory.is_run:
        return False
    stack.enter_context(RunDirectory(directory.path).locked())
    return True


def _replace(directory: RunDirectory, staging: RunDirectory) -> None:
    """Rename a prepared directory to its final path, then remove the older run."""
    place = directory.path.resolve()
    if os.name == "nt":
        # Windows cannot rename a directory that contains an open file.
        staging.unlock()
    aside = _aside(place)
    if place.exists():
        place.rename(aside)
    try:
        staging.path.rename(place)
    except OSError:
        if aside.exists():
            aside.rename(place)
        raise
    files.flush(place.parent)
    shutil.rmtree(aside, ignore_errors=True)
    directory.take_lock_of(staging)


def _aside(place: Path) -> Path:
    """Return the temporary path of an older run while a new run replaces it."""
    return place.with_name(f".{place.name}.old{UNFINISHED}")


def _remove_if_abandoned(staging: Path) -> None:
    """Remove a temporary directory of `staged_run`, unless another process still uses it."""
    if (staging / LOCK).is_file():
        with suppress(RunError), RunDirectory(staging).locked():
            shutil.rmtree(staging)
