"""Print generated or given text without control characters."""

from __future__ import annotations

import sys

from recurra.text.unicode import without_controls


def shown(text: str) -> str:
    """As it is for a file or another program; on a terminal without what would act on it."""
    return without_controls(text, but="\n\t") if sys.stdout.isatty() else text
