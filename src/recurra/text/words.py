"""Boundaries of word tokens in a string and in a stream.

Splitting preserves the text: `"".join(split_words(text)) == text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# A word or punctuation mark can have one leading space; other white space is separate tokens.
_TOKEN = re.compile(r" ?\w+(?:['\u2019]\w+)*| ?[^\w\s]|\s")

# Matches reversed text. In the original order: white space after another character, or a letter
# after a punctuation mark other than an apostrophe. No word token or BPE token spans such a border.
_BORDER_BACKWARDS = re.compile(r"[ \t\r\n](?=\S)|[^\W\d_](?=[^\w\s'\u2019])")


def split_words(text: str) -> list[str]:
    """Split a text into word tokens.

    A word token is a word, a punctuation character or a white-space character. A word consists of
    letters, digits, underscores and inner apostrophes. A word or punctuation character includes
    at most one leading space.
    """
    return _TOKEN.findall(text)


def cut_at_borders(chunks: Iterable[str]) -> Iterator[str]:
    """Split a text in chunks again so that no token spans two pieces.

    The word tokens of the pieces are the word tokens of the whole text. Text without a border, such
    as a very long word, is buffered until the next border.
    """
    buffer: list[str] = []
    for chunk in chunks:
        border = _BORDER_BACKWARDS.search(chunk[::-1])
        if border is None:
            buffer.append(chunk)
            continue
        cut = len(chunk) - border.end()
        yield "".join([*buffer, chunk[:cut]])
        buffer = [chunk[cut:]]
    if rest := "".join(buffer):
        yield rest


def slices(text: str, size: int) -> Iterator[str]:
    """Yield slices of `size` characters of a text. The last slice can be shorter."""
    for start in range(0, len(text), size):
        yield text[start : start + size]
