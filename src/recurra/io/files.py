"""Atomic file writes and JSON helpers.

All files that the project stores on disk are written by these functions.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from recurra.errors import ConfigError, RunError

UNFINISHED = ".tmp"
"""Suffix of files and directories that are still being written. Their names begin with a dot."""
CHOOSE_ANOTHER_OUT = "choose another directory with --out (from Python: out=...)"
"""What to do if a run cannot be created in a directory."""
MAX_JSON_BYTES = 1 << 24
"""Maximum size of a JSON file."""
MAX_JSON_MEMORY = 190_000_000
"""Maximum memory of the values of a JSON file in bytes: a vocabulary of almost a million words."""
MAX_JSON_DEPTH = 16
"""Maximum number of nested JSON lists and objects."""
MAX_LINE_BYTES = 1 << 20
"""Maximum size of a line in a file of JSON lines."""
MAX_LINES_BYTES = 1 << 26
"""Maximum size of a file of JSON lines."""
_INT_DIGITS = 20
_QUOTED = re.compile(rb'"[^"]*"')
_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
# UTF-8 bytes and escapes of characters that Python stores in four bytes, or in two.
_FOUR_BYTES = re.compile(rb"[\xf0-\xff]|\\u[dD]")
_TWO_BYTES = re.compile(rb"[\x80-\xff]|\\u")


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


def to_json(record: dict[str, Any]) -> bytes:
    """Return a record as indented JSON.

    Raises:
        ValueError: if a value is NaN or infinite, which JSON does not support.
    """
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name can contain bytes that are not UTF-8; \\udcff is valid JSON for such a byte.
    return text.encode("utf-8", "backslashreplace")


def write_json(file: Path, record: dict[str, Any]) -> None:
    """Write a record as indented JSON, atomically."""
    replace_bytes(file, to_json(record))


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


def read_json(file: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object of at most `max_bytes` bytes.

    Raises:
        RunError: if the file is missing or too large, or does not contain exactly one JSON object.
    """
    with opened_regular(file) as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise RunError(f"{file} is too large: the limit is {max_bytes:,} bytes")
    return parse_json(data, file)


def parse_json(data: bytes, file: Path) -> dict[str, Any]:
    """Parse a JSON object that was read from `file`.

    The data are untrusted. The memory that the values need is bounded before they are created.

    Raises:
        RunError: if the data are not a JSON object, are nested too deeply or need too much memory;
            if a key is repeated in an object; or if a number is too large or not finite.
    """
    if (memory := _parsing_memory(data)) > MAX_JSON_MEMORY:
        raise RunError(
            f"{file} is too large: its values would take {memory:,} bytes of memory; the limit is"
            f" {MAX_JSON_MEMORY:,}"
        )
    if _is_too_deep(data):
        raise RunError(f"{file} is damaged: it is nested too deeply")
    try:
        record = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_reject_constant,
            parse_float=_parse_float,
            parse_int=_parse_int,
        )
    except ValueError as error:
        raise RunError(f"{file} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise RunError(f"{file} is damaged: it does not contain a JSON object")
    return record


def _parsing_memory(data: bytes) -> int:
    """Estimate the memory in bytes that parsing JSON takes.

    The estimate covers the data, the decoded text and the strings. It adds 80 bytes for a list
    item, 100 for a container and 200 for a key.
    """
    width = 4 if _FOUR_BYTES.search(data) else 2 if _TWO_BYTES.search(data) else 1
    containers = data.count(b"[") + data.count(b"{")
    values = 80 * data.count(b",") + 100 * containers + 200 * data.count(b":")
    return len(data) * (1 + 2 * width) + values


def _is_too_deep(data: bytes) -> bool:
    """Return whether JSON is nested more deeply than `MAX_JSON_DEPTH`, without recursion.

    Strings are removed first, then the innermost pairs of brackets, once per level. In a truncated
    file, one bracket can be left for each level that was not closed.
    """
    brackets = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_BRACKETS)
    brackets = _QUOTED.sub(b"", brackets.replace(b'""', b""))
    for _ in range(MAX_JSON_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return len(brackets) > MAX_JSON_DEPTH


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {shortened(name)} is repeated in an object")
            seen.add(name)
    return record


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _parse_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {shortened(text)} is too large")
    return number


def _parse_int(text: str) -> int:
    # No count exceeds 64 bits, and larger integers may not be convertible to float.
    if len(text) > _INT_DIGITS:
        raise ValueError(f"the number {shortened(text)} is too large")
    return int(text)


def read_lines(file: Path, max_bytes: int = MAX_LINES_BYTES) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of JSON lines, or nothing if the file does not exist.

    Raises:
        RunError: if the file is larger than `max_bytes` or a line is too long; or if a line is not
            a JSON object with an integer `step`.
    """
    if not file.exists():
        return
    with opened_regular(file) as stream:
        number, size = 0, 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number, size = number + 1, size + len(line)
            if len(line) > MAX_LINE_BYTES:
                raise RunError(f"{file}, line {number} is too long")
            if size > max_bytes:
                raise RunError(f"{file} is too large: the limit is {max_bytes:,} bytes")
            if not line.endswith(b"\n"):
                return  # The process was killed while it wrote this line.
            try:
                record = parse_json(line, file)
            except RunError as error:
                raise RunError(f"{error} (line {number})") from error
            if not isinstance(record.get("step"), int):
                raise RunError(
                    f"{file}, line {number} is damaged: step is {shortened(record.get('step'))}"
                )
            yield record


def append_line(file: Path, record: dict[str, Any]) -> None:
    """Append a record to a file of JSON lines."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(file, line.encode("utf-8", "backslashreplace"), append=True)
