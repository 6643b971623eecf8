"""Write files atomically, and read regular files only.

All files that the project stores on disk are written by these functions.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from recurra.errors import ConfigError, RunError

UNFINISHED = ".tmp"
"""Suffix of files and directories that are still being written. Their names begin with a dot."""
CHOOSE_ANOTHER_OUT = "choose another directory with --out (from Python: out=...)"
"""What to do if a run cannot be created in a directory."""


def cache_folder() -> Path:
    """Return the directory of downloads and built kernels.

    This is the value of `RECURRA_CACHE` or, if it is not set, the platform's cache directory.

    Raises:
        ConfigError: neither these variables nor the user database name a home directory.
    """
    if chosen := os.environ.get("RECURRA_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else _home() / "AppData" / "Local") / "recurra" / "Cache"
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "recurra"
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else _home() / ".cache") / "recurra"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        # No directory for temporary files is used instead: other users could write to it, and the
        # cache contains a library that is loaded.
        raise ConfigError(
            "the home directory is unknown; set RECURRA_CACHE to a directory for downloads and"
            " compiled kernels"
        ) from error


@contextmanager
def permission_errors_explained(directory: Path, remedy: str) -> Iterator[None]:
    """Raise a `RunError` that names the remedy if a directory cannot be written to.

    Raises:
        RunError: the block failed because of missing permissions or a read-only file system.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise RunError(f"cannot write to {directory}: {error.strerror}; {remedy}") from error


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Yield a temporary path and replace `file` by it at the end of the block, flushed to disk.

    If the block fails, the temporary file is removed and the old file is unchanged.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}{UNFINISHED}")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, file)
        flush(file.parent)
    except OSError as error:
        _name_file(error, temporary, file)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _name_file(error: OSError, temporary: Path, file: Path) -> None:
    """Make an error name the final file, which the user knows, instead of a temporary one.

    The error of a full disk names no file.
    """
    if error.filename is None or Path(str(error.filename)) == temporary:
        _set_file(error, file)


def _set_file(error: OSError, file: Path) -> None:
    error.filename = str(file)
    # The second file of a failed rename; None instead would be printed as "-> None".
    del error.filename2


@contextmanager
def errors_name_final_path(temporary: Path, final: Path) -> Iterator[None]:
    """Make errors in a temporary directory name the files of the final one."""
    try:
        yield
    except OSError as error:
        path = Path(str(error.filename or temporary))
        if path.is_relative_to(temporary):
            _set_file(error, final / path.relative_to(temporary))
        raise


def replace_bytes(file: Path, data: bytes) -> None:
    """Replace the content of a file atomically."""
    with replaced(file) as temporary:
        write_bytes(temporary, data)


def write_bytes(file: Path, data: bytes, *, append: bool = False) -> None:
    """Write or append to a file without flushing it to disk. The umask sets its mode."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
    descriptor = os.open(file, flags | getattr(os, "O_BINARY", 0), 0o666)
    try:
        remaining = memoryview(data)
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
    except OSError as error:
        error.filename = error.filename or str(file)
        raise
    finally:
        os.close(descriptor)


def flush(path: Path) -> None:
    """Flush a file or directory to disk. On Windows, directories are ignored."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link to a file, or a copy if the file system does not support hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def umask() -> int:
    """Return the umask of the process. It can be read only by setting it temporarily."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def missing_folders(path: Path) -> list[Path]:
    """Return a directory and its parents as far as they do not exist, the deepest first."""
    return [directory for directory in (path, *path.parents) if not directory.exists()]


def make_folders(path: Path) -> list[Path]:
    """Create a directory and its parents. Return those that were missing, the deepest first."""
    missing = missing_folders(path)
    path.mkdir(parents=True, exist_ok=True)
    return missing


def remove_empty(directories: list[Path]) -> None:
    """Remove the given directories in this order, except those that are not empty."""
    for directory in directories:
        with suppress(OSError):  # The directory is not empty.
            directory.rmdir()


def remove_unfinished(directory: Path, names: str = "*") -> None:
    """Remove the unfinished files and directories that a killed process left in a directory.

    Only those whose final names match the glob pattern `names` are removed.
    """
    for path in directory.glob(f".{names}{UNFINISHED}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def opened_regular(file: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading.

    Directories, devices and pipes are rejected, because reading them may never end.

    Raises:
        RunError: if the file is missing, cannot be read, or is not a regular file.
    """
    try:
        # Without O_NONBLOCK, opening a pipe that has no writer would block.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(file, flags)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RunError(f"{file} is not a regular file")
            with open(descriptor, "rb", closefd=False) as stream:
                yield stream
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise RunError(f"{file} is missing") from error
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}") from error


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a regular file, in hexadecimal.

    Raises:
        RunError: as for `opened_regular`.
    """
    with opened_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
