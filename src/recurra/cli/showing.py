"""Replace control characters in text that is printed to a terminal."""

from __future__ import annotations

import sys

from recurra.text.unicode import without_controls


def safe_for_stdout(text: str) -> str:
    """Return the text to write to stdout; on a terminal, control characters are replaced."""
    return without_controls(text, but="\n\t") if sys.stdout.isatty() else text
