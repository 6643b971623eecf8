"""Files of JSON lines to which training appends, and their lengths in checkpoints.

A checkpoint contains only the length of each file and a digest of its last bytes, so that its size
does not depend on the number of evaluations. To resume, lines after that length are cut off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from recurra.errors import ConfigError
from recurra.io.files import flush, replace_bytes

_TAIL_BYTES = 4096


@dataclass(frozen=True)
class HistoryMark:
    """The length of a file of JSON lines at the time of a checkpoint.

    Attributes:
        num_bytes: the length of the file.
        tail_sha256: SHA-256 of its last 4,096 bytes, or of all if there are fewer.
    """

    num_bytes: int
    tail_sha256: str

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return the mark at the end of these contents."""
        return cls(len(data), hashlib.sha256(data[-_TAIL_BYTES:]).hexdigest())

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Return the mark that `dataclasses.asdict` converted to `values`.

        Raises:
            ConfigError: a field is missing, unknown or invalid.
        """
        fields = ("num_bytes", "tail_sha256")
        if not isinstance(values, dict) or tuple(sorted(values)) != fields:
            raise ConfigError(f"a history must have exactly the fields {list(fields)}")
        mark = cls(**values)
        is_count = type(mark.num_bytes) is int and mark.num_bytes >= 0
        if not is_count or not isinstance(mark.tail_sha256, str):
            raise ConfigError("a history has an invalid length or digest")
        return mark

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)

    def fits(self, data: bytes) -> bool:
        """Return whether these contents begin with those at the time of the checkpoint."""
        return len(data) >= self.num_bytes and self == self.of(data[: self.num_bytes])


def mark_of(file: Path) -> HistoryMark:
    """Flush a file to disk, and return the mark at its end."""
    flush(file)
    with file.open("rb") as stream:
        num_bytes = stream.seek(0, 2)
        stream.seek(max(0, num_bytes - _TAIL_BYTES))
        return HistoryMark(num_bytes, hashlib.sha256(stream.read()).hexdigest())


def restore(
    file: Path,
    mark: HistoryMark | None,
    is_valid: Callable[[dict[str, Any]], bool] = lambda record: True,
) -> str | None:
    """Cut off the lines after a mark, and remove damaged lines before it.

    Args:
        file: the file.
        mark: its mark in the checkpoint; None if it did not exist.
        is_valid: returns whether the fields of a line are valid, in addition to `step`.

    Returns:
        A message if the file was damaged, otherwise None.
    """
    if mark is None:
        file.unlink(missing_ok=True)
        return None
    data = file.read_bytes() if file.is_file() else b""
    lines = data[: mark.num_bytes].splitlines(keepends=True)
    intact = [line for line in lines if _is_intact(line, is_valid)]
    kept = b"".join(intact)
    if kept != data:
        replace_bytes(file, kept)
    if mark.fits(data) and len(intact) == len(lines):
        return None
    count = len(intact)
    return f"{file} is damaged; {count:,} line{'s' if count != 1 else ''} of it were kept"


def _is_intact(line: bytes, is_valid: Callable[[dict[str, Any]], bool]) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    is_record = isinstance(record, dict) and isinstance(record.get("step"), int)
    return is_record and is_valid(record)
