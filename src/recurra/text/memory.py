"""`MemoryText`: strings, bytes and open files as the text of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from reprlib import repr as shortened
from typing import IO

from recurra.errors import ConfigError, SourceError

MEMORY = "<memory>"
"""Name of a text in memory, in messages and records."""

TextInMemory = str | bytes | IO[str] | IO[bytes] | Iterable[str] | Iterable[bytes]

_CHUNK = 1 << 20


class MemoryText:
    """A text in memory, as a source of a run. It is read once, in order.

    Args:
        text: a string, bytes, an open file, or an iterable of strings or of bytes. The items of an
            iterable are separate texts, which are joined by a separator, like files.

    Raises:
        ConfigError: `text` has another type.
    """

    def __init__(self, text: TextInMemory) -> None:
        if isinstance(text, memoryview):
            text = bytes(text)
        self._is_whole = isinstance(text, (str, bytes, bytearray)) or hasattr(text, "read")
        if not self._is_whole and not isinstance(text, Iterable):
            raise ConfigError(
                f"text is {shortened(text)}; it must be a string, bytes, an open file, or an"
                " iterable of strings or of bytes"
            )
        self._items = iter(_contents(text))
        self._first = next(self._items, "")

    def __str__(self) -> str:
        return MEMORY

    @property
    def encoding(self) -> str | None:
        """The encoding of `read`: utf-8 for strings, None for bytes."""
        return "utf-8" if isinstance(self._first, str) else None

    def read(self, separator: str | bytes) -> Iterator[bytes]:
        """Yield the bytes of the text; strings are encoded as UTF-8.

        Args:
            separator: the text between two items of an iterable.

        Raises:
            ConfigError: an item has another type than the first one.
            SourceError: a string contains a lone surrogate, which has no UTF-8 encoding.
        """
        border = b"" if self._is_whole else _encoded(separator)
        kind = str if isinstance(self._first, str) else (bytes, bytearray)
        for number, item in enumerate(chain([self._first], self._items)):
            if not isinstance(item, kind):
                raise ConfigError(
                    f"item {number} of text is {shortened(item)}; the items must all be strings,"
                    " or all be bytes"
                )
            if number > 0 and border:
                yield border
            for start in range(0, len(item), _CHUNK):
                yield _encoded(item[start : start + _CHUNK])


def _contents(text: TextInMemory) -> Iterable[str | bytes]:
    """Return the items of a text: whole texts, or the chunks of a file."""
    if isinstance(text, (str, bytes, bytearray)):
        return [text]
    if hasattr(text, "read"):
        try:
            end = type(text.read(0))()
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"the file {shortened(text)} cannot be read: {error}") from error
        return iter(lambda: text.read(_CHUNK), end)
    return text


def _encoded(text: str | bytes) -> bytes:
    if not isinstance(text, str):
        return bytes(text)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise SourceError(
            f"the text in memory contains the lone surrogate {text[error.start]!r}, which is not a"
            " character"
        ) from error
