"""Decode ids to text incrementally, without emitting incomplete characters.

A byte-level token can contain a part of a character. The decoder buffers this part until the rest
of the character arrives. The concatenated outputs are equal to the result of `Vocabulary.decode`.
"""

from __future__ import annotations

import abc
import codecs
from collections.abc import Sequence
from typing import final


class IncrementalDecoder(abc.ABC):
    """Base class of decoders that convert a stream of ids to text."""

    @abc.abstractmethod
    def push(self, token_id: int) -> str:
        """Add an id and return the text that it completes, which can be empty."""

    @abc.abstractmethod
    def finish(self) -> str:
        """End the stream and return the remaining text. An incomplete character is dropped."""


@final
class SymbolDecoder(IncrementalDecoder):
    """Decoder of vocabularies in which every token is a string."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self._symbols = symbols

    def push(self, token_id: int) -> str:
        """Return the text of the token."""
        return self._symbols[token_id]

    def finish(self) -> str:
        """Return an empty string: no text is buffered."""
        return ""


@final
class Utf8Decoder(IncrementalDecoder):
    """Decoder of vocabularies in which every token is a sequence of UTF-8 bytes.

    Bytes are replaced by U+FFFD only if no continuation can make them valid.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Add an id and return the characters that its token completes."""
        return self._decoder.decode(self._pieces[token_id])

    def finish(self) -> str:
        """Drop the incomplete character, if there is one, and return an empty string."""
        self._decoder.reset()
        return ""


def decode_utf8(data: bytes) -> str:
    """Return the text of UTF-8 bytes, decoded as by `Utf8Decoder`."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)
