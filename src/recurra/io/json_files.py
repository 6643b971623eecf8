"""Read and write JSON files, within limits of size, memory and depth."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from recurra.errors import RunError
from recurra.io.files import opened_regular, replace_bytes, write_bytes

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
