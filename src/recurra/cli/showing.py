"""Remove control characters from text that is printed to a terminal."""

from __future__ import annotations

import sys

from recurra.text.unicode import without_controls


def shown(text: str) -> str:
    """Return a text for stdout; on a terminal, without control characters that could act on it."""
    return without_controls(text, but="\n\t") if sys.stdout.isatty() else text
