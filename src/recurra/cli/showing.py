"""Print text and records without control characters that could affect a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from recurra.text.unicode import escape_controls, without_controls


def safe_for_stdout(text: str) -> str:
    """Return the text to write to stdout; on a terminal, control characters are replaced."""
    return without_controls(text, but="\n\t") if sys.stdout.isatty() else text


def json_line(record: Mapping[str, Any]) -> str:
    """Return a record as one line of JSON in which all control characters are escaped.

    JSON requires this only for those below U+0020, and `json.dumps` leaves the others, which can
    control a terminal or end a line, unchanged.
    """
    return escape_controls(json.dumps(record, ensure_ascii=False))
