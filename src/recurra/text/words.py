"""Boundaries of word tokens in a string and in a stream.

Splitting loses nothing: "".join(split_words(text)) == text. Knows no ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# One space may lead a word or a punctuation mark; every other white space stands alone.
_TOKEN = re.compile(r" ?\w+(?:['\u2019]\w+)*| ?[^\w\s]|\s")

# Read backwards: white space after anything else, or a letter after a mark that is no apostrophe.
# No word token and no BPE piece reaches across such a place.
_BORDER_BACKWARDS = re.compile(r"[ \t\r\n](?=\S)|[^\W\d_](?=[^\w\s'\u2019])")


def split_words(text: str) -> list[str]:
    """The word tokens of a text, in order.

    A token is a run of letters, digits and underscores with apostrophes inside it, or one
    punctuation character, either with at most one leading space; or one white-space character.
    """
    return _TOKEN.findall(text)


def cut_at_borders(chunks: Iterable[str]) -> Iterator[str]:
    """The same text, cut again so that no token reaches across a cut.

    Splitting the pieces one by one gives what splitting the whole text gives. A stretch without a
    border (one endless word) is held back until it ends.
    """
    held: list[str] = []
    for chunk in chunks:
        border = _BORDER_BACKWARDS.search(chunk[::-1])
        if border is None:
            held.append(chunk)
            continue
        cut = len(chunk) - border.end()
        yield "".join([*held, chunk[:cut]])
        held = [chunk[cut:]]
    if rest := "".join(held):
        yield rest


def slices(text: str, size: int) -> Iterator[str]:
    """A text in slices of `size` characters, the last one shorter."""
    for start in range(0, len(text), size):
        yield text[start : start + size]
