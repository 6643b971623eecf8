"""Vocabulary of the 256 bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self, final

import numpy as np

from recurra.config import UnknownRule
from recurra.text.decoding import IncrementalDecoder, Utf8Decoder, decode_utf8
from recurra.text.unicode import label_bytes, utf8
from recurra.text.vocabulary import Ids, Vocabulary, checked_ids


@final
class ByteVocabulary(Vocabulary):
    """Vocabulary of the 256 bytes, which can encode every text and file."""

    kind = "byte"
    _PIECES = tuple(bytes([value]) for value in range(256))

    def __len__(self) -> int:
        """Return 256."""
        return 256

    def encode(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """Return the UTF-8 bytes of a text as ids, (bytes,) int64. `unknown` has no effect."""
        return self.encode_bytes(utf8(text))

    def encode_bytes(self, data: bytes) -> Ids:
        """Return bytes as ids, (len(data),) int64."""
        return np.frombuffer(data, dtype=np.uint8).astype(np.int64)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of a sequence of ids, the inverse of `encode_bytes`.

        Raises:
            IndexError: if an id is outside the vocabulary.
        """
        return checked_ids(ids, len(self)).astype(np.uint8).tobytes()

    def byte_lengths(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """Return a 1 for each byte of the text, (bytes,) int64."""
        return np.ones(len(utf8(text)), dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the bytes decoded as UTF-8."""
        return decode_utf8(self.decode_bytes(ids))

    def decoder(self) -> IncrementalDecoder:
        """Return a decoder that buffers the bytes of incomplete characters."""
        return Utf8Decoder(self._PIECES)

    def label(self, token_id: int) -> str:
        """Return the ASCII character, or the byte in hexadecimal."""
        return label_bytes(self._PIECES[token_id])

    def to_dict(self) -> dict[str, Any]:
        """Return the kind, which determines the vocabulary."""
        return {"kind": self.kind}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        return cls()
