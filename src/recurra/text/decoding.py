"""Decode ids to text incrementally, without emitting incomplete characters.

Byte-level tokens may each hold a part of a character; the decoder keeps such a part until the rest
arrives. What is pushed piece by piece joins to what `Vocabulary.decode` gives at once.
"""

from __future__ import annotations

import abc
import codecs
from collections.abc import Sequence
from typing import final


class IncrementalDecoder(abc.ABC):
    """Turns a stream of ids into text."""

    @abc.abstractmethod
    def push(self, token_id: int) -> str:
        """Take one more id; the text that is certain now and was not before."""

    @abc.abstractmethod
    def finish(self) -> str:
        """End the stream: the text still owed. A character that was begun only is dropped."""


@final
class SymbolDecoder(IncrementalDecoder):
    """For vocabularies whose every token is text by itself."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self._symbols = symbols

    def push(self, token_id: int) -> str:
        """The token's text."""
        return self._symbols[token_id]

    def finish(self) -> str:
        """Nothing: no text is ever held back."""
        return ""


@final
class Utf8Decoder(IncrementalDecoder):
    """For vocabularies whose tokens are bytes of UTF-8, whole characters or not.

    U+FFFD appears only for bytes that no continuation could make valid.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes."""
        return self._decoder.decode(self._pieces[token_id])

    def finish(self) -> str:
        """Nothing: what is still held back is an incomplete character."""
        self._decoder.reset()
        return ""


def decode_utf8(data: bytes) -> str:
    """The text of bytes given at once, by the rules of `Utf8Decoder`."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)
