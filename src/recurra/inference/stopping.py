"""Detect stop strings in a stream of text pieces.

Text is returned as soon as it cannot be part of a stop string. The longest suffix that could still
become a stop string is held back.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Filter that passes text on until a stop string is complete.

    The stop string that is complete first ends the text. If several end at the same character, the
    longest counts. The stop string and all text after it are dropped. The result does not depend on
    how the text is divided into pieces.

    Attributes:
        stopped: whether a stop string was found.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.stopped = False
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""

    def push(self, piece: str) -> str:
        """Process the next piece, and return the text that is certain to belong to the output.

        Returns an empty string after a stop string was found.
        """
        if self.stopped:
            return ""
        text, self._held = self._held + piece, ""
        found = self._find(text)
        if found is not None:
            self.stopped = True
            return text[:found]
        hold = self._start_of_candidate(text)
        self._held = text[hold:]
        return text[:hold]

    def finish(self) -> str:
        """Return the text that was held back, because no more text follows."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str) -> int | None:
        """Return the start of the stop string that is complete first, or None."""
        found = [(start + len(s), start) for s in self._stop if (start := text.find(s)) >= 0]
        return min(found)[1] if found else None

    def _start_of_candidate(self, text: str) -> int:
        """Return the start of the longest suffix of the text that is a prefix of a stop string."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(s.startswith(text[start:]) for s in self._stop):
                return start
        return len(text)
