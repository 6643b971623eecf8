"""Atomic file writes and JSON helpers.

Everything the project keeps on disk is written through here. Knows nothing of what is written.
"""

from __future__ import annotations

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

from recurra.errors import RunError

UNFINISHED = ".tmp"
"""How the names of files and folders end that are still being written; they begin with a dot."""
MAX_JSON_BYTES = 1 << 24
MAX_JSON_MEMORY = 190_000_000
"""What the values of one file may take: enough for a vocabulary of nearly a million words."""
MAX_JSON_DEPTH = 16
MAX_LINE_BYTES = 1 << 20
MAX_LINES_BYTES = 1 << 26
"""Of one line, and of a whole file of JSON lines."""
_INT_DIGITS = 20
_QUOTED = re.compile(rb'"[^"]*"')
_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
# Of bytes in UTF-8, or of an escape: a character that Python keeps in four bytes, or in two.
_FOUR_BYTES = re.compile(rb"[\xf0-\xff]|\\u[dD]")
_TWO_BYTES = re.compile(rb"[\x80-\xff]|\\u")


def cache_folder() -> Path:
    """Where downloads and built kernels are kept: `RECURRA_CACHE`, or the platform's place."""
    if chosen := os.environ.get("RECURRA_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "recurra" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "recurra"
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "recurra"


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well it takes the file's place, flushed to disk.

    When the block fails, the temporary file is removed and the old file is as it was.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}{UNFINISHED}")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, file)
        flush(file.parent)
    except OSError as error:
        # The error of a full disk does not name the file.
        error.filename = error.filename or str(file)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def replace_bytes(file: Path, data: bytes) -> None:
    """Give a file this content, whole or not at all."""
    with replaced(file) as temporary:
        write_bytes(temporary, data)


def write_bytes(file: Path, data: bytes, *, append: bool = False) -> None:
    """Write a file, or at the end of one; its mode follows the umask. Does not flush."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
    descriptor = os.open(file, flags | getattr(os, "O_BINARY", 0), 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError as error:
        error.filename = error.filename or str(file)
        raise
    finally:
        os.close(descriptor)


def flush(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk (on Windows files only)."""
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


def make_folders(path: Path) -> list[Path]:
    """Make a folder and those above it; the ones that were missing, the lowest first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders that hold nothing, in this order."""
    for folder in folders:
        with suppress(OSError):  # not empty
            folder.rmdir()


def remove_unfinished(folder: Path, names: str = "*") -> None:
    """Remove what a process that was killed left half-written in a folder, of files and folders
    with these names (a glob pattern)."""
    for path in folder.glob(f".{names}{UNFINISHED}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def to_json(record: dict[str, Any]) -> bytes:
    """JSON for people; NaN and infinity, which are no JSON, are a ValueError."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name may hold what is not UTF-8; as \\udcff it is JSON all the same.
    return text.encode("utf-8", "backslashreplace")


def write_json(file: Path, record: dict[str, Any]) -> None:
    """Write JSON for people, whole or not at all."""
    replace_bytes(file, to_json(record))


@contextmanager
def opened_regular(file: Path) -> Iterator[BufferedReader]:
    """Open a file to read; a folder, a device or a pipe, which may never end, is refused.

    Raises:
        RunError: the file is missing, cannot be read, or is no regular file.
    """
    try:
        # Do not wait for a pipe without a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(file, flags)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RunError(f"{file} is no regular file")
            with open(descriptor, "rb", closefd=False) as stream:
                yield stream
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise RunError(f"{file} is missing") from error
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}") from error


def read_json(file: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object of at most so many bytes.

    Raises:
        RunError: the file is missing, too large, or holds something other than one JSON object.
    """
    with opened_regular(file) as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise RunError(f"{file} is too large: it may have {max_bytes:,} bytes")
    return parse_json(data, file)


def parse_json(data: bytes, file: Path) -> dict[str, Any]:
    """Read a JSON object; `file` is where it came from.

    An untrusted file may try to exhaust memory, or to contradict itself: what its
    values will take is bounded before they are made, and a key may stand only once in its object.

    Raises:
        RunError: it is not JSON, or not an object; it is too deep or its values take too much; a
            key stands twice; a number is not finite, or an integer is beyond 64 bits.
    """
    if (memory := _memory_of(data)) > MAX_JSON_MEMORY:
        raise RunError(
            f"{file} is too large: its values would take {memory:,} bytes of memory, and may take"
            f" {MAX_JSON_MEMORY:,}"
        )
    if _is_deep(data):
        raise RunError(f"{file} is damaged: it is nested too deeply")
    try:
        record = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except ValueError as error:
        raise RunError(f"{file} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise RunError(f"{file} is damaged: it should hold one JSON object")
    return record


def _memory_of(data: bytes) -> int:
    """About the memory that JSON takes while it is parsed: its bytes, its text, its strings, and
    some eighty bytes for an item of a list, a hundred for a container, two hundred for a key."""
    width = 4 if _FOUR_BYTES.search(data) else 2 if _TWO_BYTES.search(data) else 1
    containers = data.count(b"[") + data.count(b"{")
    values = 80 * data.count(b",") + 100 * containers + 200 * data.count(b":")
    return len(data) * (1 + 2 * width) + values


def _is_deep(data: bytes) -> bool:
    """Whether JSON has more levels than any of ours, found without the recursion of a parser.

    What is in quotes goes, then the innermost brackets, again and again; of a file that was cut
    off, as many may be left as it was deep there.
    """
    brackets = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_BRACKETS)
    brackets = _QUOTED.sub(b"", brackets.replace(b'""', b""))
    for _ in range(MAX_JSON_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return len(brackets) > MAX_JSON_DEPTH


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {shortened(name)} stands twice in one object")
            seen.add(name)
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {shortened(text)} is too large")
    return number


def _whole(text: str) -> int:
    # Beyond 64 bits it is no count of anything, and too large to become a float.
    if len(text) > _INT_DIGITS:
        raise ValueError(f"the number {shortened(text)} is too large")
    return int(text)


def read_lines(file: Path, max_bytes: int = MAX_LINES_BYTES) -> Iterator[dict[str, Any]]:
    """The reports in a file of JSON lines of at most so many bytes; none where there is no file.

    Raises:
        RunError: the file or a line is too large, or a line is not a report.
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
                raise RunError(f"{file} is too large: it may have {max_bytes:,} bytes")
            if not line.endswith(b"\n"):
                return  # half a line: its writing was cut off, so it was never a record
            try:
                record = parse_json(line, file)
            except RunError as error:
                raise RunError(f"{error} (line {number})") from error
            if not isinstance(record.get("step"), int):
                raise RunError(f"{file}, line {number} is damaged: it is no report")
            yield record


def append_line(file: Path, record: dict[str, Any]) -> None:
    """Add one line of JSON."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(file, line.encode("utf-8", "backslashreplace"), append=True)
