"""Detect stop strings in a stream of text pieces.

Text is released as soon as it is certain that it belongs to the output: the longest ending that may
still become a stop string is held back. Knows no tokens and no model.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Lets text through until a stop string is complete.

    The result does not depend on where the pieces are cut: the stop string that is complete first
    ends the text, and of several that end at the same character, the longest. It is left out, and
    so is everything after it.

    Attributes: `stopped`, true once a stop string was found.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.stopped = False
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""

    def push(self, piece: str) -> str:
        """Take the next piece; return what is now certain (nothing more after a stop)."""
        if self.stopped:
            return ""
        text, self._held = self._held + piece, ""
        found = self._find(text)
        if found is not None:
            self.stopped = True
            return text[:found]
        hold = self._first_doubtful(text)
        self._held = text[hold:]
        return text[:hold]

    def finish(self) -> str:
        """No more text will come: what was held back is no stop string."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str) -> int | None:
        """Where the stop string begins that is complete first, or None."""
        found = [(start + len(s), start) for s in self._stop if (start := text.find(s)) >= 0]
        return min(found)[1] if found else None

    def _first_doubtful(self, text: str) -> int:
        """Where the longest ending of the text begins that also begins a stop string."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(s.startswith(text[start:]) for s in self._stop):
                return start
        return len(text)
