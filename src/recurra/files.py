"""Files that are there whole or not at all, and JSON in them.

Everything the project keeps on disk is written through here. Knows nothing of what is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recurra.errors import RunError


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well it takes the file's place, flushed to disk.

    When the block fails, the temporary file is removed and the old file is as it was.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        flush(temporary)
        temporary.replace(file)
        flush(file.parent)
    except OSError as error:
        # A full disk, for one, does not say which file it had no room for.
        error.filename = error.filename or str(file)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk (on Windows files only)."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(file: Path, record: dict[str, Any]) -> None:
    """Write JSON for people, whole or not at all."""
    with replaced(file) as temporary:
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        # A file name may hold what is not UTF-8; as \\udcff it is JSON all the same.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: the file is missing, is not JSON, or holds something other than an object.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{file} is missing") from error
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise RunError(f"{file} is damaged: it should hold one JSON object")
    return record


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The reports in a file of JSON lines; none where there is no file.

    Raises:
        RunError: a line is not JSON.
    """
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith("\n"):
                return  # half a line: its writing was cut off, so it was never a record
            try:
                record = json.loads(line)
            except ValueError as error:
                raise RunError(f"{file}, line {number} is damaged: {error}") from error
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise RunError(f"{file}, line {number} is damaged: it is no report")
            yield record


def append_line(file: Path, record: dict[str, Any]) -> None:
    """Add one line of JSON."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")
