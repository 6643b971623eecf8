"""Vocabularies of characters, words and bytes: text to ids and back.

BPE lives in bpe.py, because it needs an optional package. Does not know where a text comes from or
which part of it is for training: it is given counts.
"""

from __future__ import annotations

import abc
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from reprlib import repr as shortened
from typing import Any, ClassVar, Self, final

import numpy as np
import numpy.typing as npt

from recurra.config import MAX_VOCABULARY, TokenKind, UnknownRule
from recurra.errors import ConfigError, SourceError, UnknownTokenError
from recurra.text.decoding import IncrementalDecoder, SymbolDecoder, Utf8Decoder, decode_utf8
from recurra.text.unicode import code_points, label_bytes, printable, utf8
from recurra.text.words import split_words

Ids = npt.NDArray[np.int64]
_SURROGATE = re.compile("[\ud800-\udfff]")

UNKNOWN = "<unk>"
"""Name of the token that stands for every symbol the vocabulary does not have."""

UNKNOWN_TEXT = "\ufffd"
"""What that token reads as in a decoded text."""


class Vocabulary(abc.ABC):
    """An immutable table of tokens. Equal tables have equal fingerprints."""

    kind: ClassVar[TokenKind]
    unknown_id: ClassVar[int | None] = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of tokens, `<unk>` included where there is one."""

    @abc.abstractmethod
    def encode(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """The ids of a prepared text, (tokens,) int64.

        Raises:
            UnknownTokenError: a symbol is not in the vocabulary and `unknown` is "error".
            SourceError: byte-level vocabularies, on a lone surrogate, which has no bytes.
        """

    @abc.abstractmethod
    def byte_lengths(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """How many UTF-8 bytes of the text each token of `encode(text, unknown)` covers.

        The sum is the length of the text in UTF-8. Raises as `encode`, and SourceError on a lone
        surrogate.
        """

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; `<unk>` reads as U+FFFD.

        Byte-level vocabularies give U+FFFD for invalid bytes and drop an incomplete character at
        the end.

        Raises:
            IndexError: an id is outside the vocabulary.
        """

    @abc.abstractmethod
    def decoder(self) -> IncrementalDecoder:
        """A decoder for ids that arrive one by one."""

    @abc.abstractmethod
    def label(self, token_id: int) -> str:
        """A printable name of one token, for tables and plots."""

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything needed to build it again, ready for JSON."""

    @classmethod
    @abc.abstractmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Build a vocabulary of this kind from `to_dict`; see `vocabulary_from_dict`."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the canonical JSON of `to_dict`."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def __eq__(self, other: object) -> bool:
        """Whether the other is a vocabulary with the same table."""
        return isinstance(other, Vocabulary) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        """In agreement with `__eq__`."""
        return hash(self.fingerprint)


class SymbolVocabulary(Vocabulary):
    """A table of strings, `<unk>` first: what characters and words share."""

    unknown_id: ClassVar[int | None] = 0

    def __init__(self, symbols: Iterable[str]) -> None:
        """From the symbols without `<unk>`, in the order of their ids from 1 on."""
        self.tokens: tuple[str, ...] = (UNKNOWN, *symbols)
        self._texts = (UNKNOWN_TEXT, *self.tokens[1:])

    @classmethod
    def from_counts(
        cls, counts: Mapping[str, int], *, min_freq: int = 1, vocab_size: int | None = None
    ) -> Self:
        """The most frequent symbols first, equally frequent ones by code point.

        Symbols seen fewer than `min_freq` times are left out, and so are the rarest beyond
        `vocab_size` entries (`<unk>` counts as one).

        Raises:
            ConfigError: no symbol is left.
            SourceError: more than `MAX_VOCABULARY` are left.
        """
        kept = [symbol for symbol, count in counts.items() if count >= max(min_freq, 1)]
        if not kept:
            most = max(counts.values(), default=0)
            raise ConfigError(
                f"min_freq {min_freq} leaves no token: the most frequent is seen {most} times"
            )
        kept.sort(key=lambda symbol: (-counts[symbol], symbol))
        if vocab_size is None and len(kept) >= MAX_VOCABULARY:
            raise SourceError(
                f"the text has {len(kept):,} different tokens, and a vocabulary at most"
                f" {MAX_VOCABULARY:,}; --vocab-size or --min-freq leaves out the rare ones"
            )
        return cls(kept if vocab_size is None else kept[: vocab_size - 1])

    @classmethod
    def from_text(cls, text: str, *, min_freq: int = 1, vocab_size: int | None = None) -> Self:
        """From all of a prepared text, as `from_counts`."""
        return cls.from_counts(Counter(cls.split(text)), min_freq=min_freq, vocab_size=vocab_size)

    @staticmethod
    @abc.abstractmethod
    def split(text: str) -> Sequence[str]:
        """The symbols of a text, in order; joined they are the text."""

    @cached_property
    def index(self) -> Mapping[str, int]:
        """The id of each symbol, without `<unk>`."""
        return {symbol: token_id for token_id, symbol in enumerate(self.tokens) if token_id > 0}

    def __len__(self) -> int:
        """Number of symbols, plus one."""
        return len(self.tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """The symbols joined; `<unk>` reads as U+FFFD."""
        return "".join([self._texts[token_id] for token_id in checked_ids(ids, len(self)).tolist()])

    def decoder(self) -> IncrementalDecoder:
        """A decoder that never holds anything back."""
        return SymbolDecoder(self._texts)

    def label(self, token_id: int) -> str:
        """The symbol, white space made visible."""
        return printable(self.tokens[token_id])

    def to_dict(self) -> dict[str, Any]:
        """Kind and tokens, `<unk>` included."""
        return {"kind": self.kind, "tokens": list(self.tokens)}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        tokens = values.get("tokens")
        if not isinstance(tokens, list) or not 2 <= len(tokens) <= MAX_VOCABULARY:
            raise ConfigError(
                f"vocabulary field 'tokens' must be a list of 2 to {MAX_VOCABULARY:,} tokens"
            )
        if tokens[0] != UNKNOWN:
            raise ConfigError(f"vocabulary field 'tokens' must begin with {UNKNOWN!r}")
        for token in tokens[1:]:
            if not cls._is_token(token):
                raise ConfigError(
                    f"vocabulary field 'tokens' has {shortened(token)}, which is no {cls.kind}"
                )
        if len(set(tokens)) < len(tokens):
            raise ConfigError("vocabulary field 'tokens' has one of its tokens twice")
        return cls(tokens[1:])

    @classmethod
    def _is_token(cls, value: Any) -> bool:
        # Half a character, which JSON can write, could never be printed.
        return (
            isinstance(value, str)
            and len(cls.split(value)) == 1
            and _SURROGATE.search(value) is None
        )


@final
class CharVocabulary(SymbolVocabulary):
    """One token per character (Unicode code point), and `<unk>`."""

    kind = "char"

    @staticmethod
    def split(text: str) -> str:
        """The text itself: a string is the sequence of its characters."""
        return text

    @cached_property
    def _id_of_code_point(self) -> Ids:
        # One row more than the largest code point, for everything beyond it; -1 is unknown.
        table = np.full(max(map(ord, self.tokens[1:]), default=0) + 2, -1, dtype=np.int64)
        table[[ord(symbol) for symbol in self.tokens[1:]]] = range(1, len(self))
        return table

    def encode(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """One id per character."""
        table = self._id_of_code_point
        ids = table[np.minimum(code_points(text), len(table) - 1)]
        missing = np.flatnonzero(ids < 0)
        if len(missing) and unknown != "replace":
            position = int(missing[0])
            raise UnknownTokenError(text[position], position)
        ids[missing] = 0
        return ids

    def byte_lengths(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """1 to 4 for each character."""
        self.encode(text, unknown)
        utf8(text)
        points = code_points(text)
        lengths = np.ones(len(text), dtype=np.int64)
        for first_of_longer in (0x80, 0x800, 0x10000):
            lengths += points >= first_of_longer
        return lengths


@final
class WordVocabulary(SymbolVocabulary):
    """One token per word, punctuation mark or white-space character; see words.py."""

    kind = "word"

    @staticmethod
    def split(text: str) -> list[str]:
        """The word tokens."""
        return split_words(text)

    def encode(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """One id per word token."""
        tokens = split_words(text)
        ids = np.fromiter((self.index.get(token, 0) for token in tokens), np.int64, len(tokens))
        if unknown != "replace" and not ids.all():
            first = int(np.argmin(ids))
            raise UnknownTokenError(tokens[first], sum(map(len, tokens[:first])))
        return ids

    def byte_lengths(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """The length of each word token in UTF-8."""
        self.encode(text, unknown)
        utf8(text)
        return np.array([len(word.encode()) for word in split_words(text)], dtype=np.int64)


@final
class ByteVocabulary(Vocabulary):
    """The 256 bytes: reads every file, knows every text."""

    kind = "byte"
    _PIECES = tuple(bytes([value]) for value in range(256))

    def __len__(self) -> int:
        """Always 256."""
        return 256

    def encode(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """The bytes of the text in UTF-8; nothing is ever unknown."""
        return self.encode_bytes(utf8(text))

    def encode_bytes(self, data: bytes) -> Ids:
        """Any bytes as ids, (len(data),) int64."""
        return np.frombuffer(data, dtype=np.uint8).astype(np.int64)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids, valid UTF-8 or not; the inverse of `encode_bytes`.

        Raises:
            IndexError: an id is outside the vocabulary.
        """
        return checked_ids(ids, len(self)).astype(np.uint8).tobytes()

    def byte_lengths(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """A one for each byte."""
        return np.ones(len(utf8(text)), dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The bytes read as UTF-8."""
        return decode_utf8(self.decode_bytes(ids))

    def decoder(self) -> IncrementalDecoder:
        """A decoder that keeps the bytes of unfinished characters."""
        return Utf8Decoder(self._PIECES)

    def label(self, token_id: int) -> str:
        """The ASCII character, or the byte in hexadecimal."""
        return label_bytes(self._PIECES[token_id])

    def to_dict(self) -> dict[str, Any]:
        """The kind says it all."""
        return {"kind": self.kind}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        return cls()


def checked_ids(ids: Iterable[int], size: int) -> Ids:
    """Any iterable of ids as an array; IndexError when one is outside a vocabulary of this size."""
    array = np.asarray(ids if isinstance(ids, np.ndarray) else [int(i) for i in ids], np.int64)
    outside = array[(array < 0) | (array >= size)]
    if len(outside):
        raise IndexError(f"token id {outside[0]} is outside the vocabulary of {size}")
    return array
