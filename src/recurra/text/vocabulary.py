"""Vocabularies of characters, words and bytes, which convert text to ids and back.

The BPE vocabulary is in `bpe.py`, because it needs an optional dependency.
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
from recurra.text.decoding import IncrementalDecoder, SymbolDecoder
from recurra.text.unicode import code_points, printable, utf8
from recurra.text.words import split_words

Ids = npt.NDArray[np.int64]
_SURROGATE = re.compile("[\ud800-\udfff]")

UNKNOWN = "<unk>"
"""Name of the token for all symbols that are not in the vocabulary."""

UNKNOWN_TEXT = "\ufffd"
"""Text to which the unknown token is decoded."""


class Vocabulary(abc.ABC):
    """Base class of all vocabularies: immutable tables of tokens.

    Attributes:
        kind: kind of the tokens.
        unknown_id: id of the unknown token; None if every text can be encoded without it.
    """

    kind: ClassVar[TokenKind]
    unknown_id: ClassVar[int | None] = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of tokens, including `<unk>` if there is one."""

    @abc.abstractmethod
    def encode(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """Return the ids of a prepared text, (tokens,) int64.

        Args:
            text: the text, as returned by `corpus.prepare_text`.
            unknown: "error" to raise for symbols that are not in the vocabulary; "replace" to
                encode them as `<unk>`.

        Raises:
            UnknownTokenError: if a symbol is not in the vocabulary and `unknown` is "error".
            SourceError: if the vocabulary is byte-level and the text contains a lone surrogate,
                which has no UTF-8 encoding.
        """

    @abc.abstractmethod
    def byte_lengths(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """Return the number of UTF-8 bytes of each token of `encode(text, unknown)`, (tokens,).

        The sum is the length of the text in UTF-8.

        Raises:
            UnknownTokenError: as for `encode`.
            SourceError: if the text contains a lone surrogate.
        """

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of a sequence of ids; `<unk>` is decoded to U+FFFD.

        Byte-level vocabularies replace invalid bytes by U+FFFD and drop an incomplete character at
        the end.

        Raises:
            IndexError: if an id is outside the vocabulary.
        """

    @abc.abstractmethod
    def decoder(self) -> IncrementalDecoder:
        """Return a decoder for ids that arrive one at a time."""

    def missing_characters(self, text: str) -> list[str]:
        """Return the characters of a text that no sequence of tokens can produce, in its order.

        A byte-level vocabulary can produce every character except a lone surrogate.
        """
        return _SURROGATE.findall(text)

    @abc.abstractmethod
    def label(self, token_id: int) -> str:
        """Return a printable name of a token, for tables and plots."""

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dictionary from which the vocabulary can be rebuilt."""

    @classmethod
    @abc.abstractmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Build a vocabulary of this kind from the result of `to_dict`.

        Use `vocabulary_from_dict` if the kind is not known.

        Raises:
            ConfigError: if a field is missing or invalid. The message names the field.
        """

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of `to_dict`, in hexadecimal; equal for equal tables."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def __eq__(self, other: object) -> bool:
        """Return whether the other object is a vocabulary with the same table."""
        return isinstance(other, Vocabulary) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        """Return the hash of the fingerprint."""
        return hash(self.fingerprint)


class SymbolVocabulary(Vocabulary):
    """Base class of vocabularies whose tokens are strings, with `<unk>` as token 0.

    Args:
        symbols: the symbols without `<unk>`, in the order of their ids from 1 on.

    Attributes:
        tokens: all tokens in the order of their ids.
    """

    unknown_id: ClassVar[int | None] = 0

    def __init__(self, symbols: Iterable[str]) -> None:
        self.tokens: tuple[str, ...] = (UNKNOWN, *symbols)
        self._texts = (UNKNOWN_TEXT, *self.tokens[1:])

    @classmethod
    def from_counts(
        cls, counts: Mapping[str, int], *, min_freq: int = 1, vocab_size: int | None = None
    ) -> Self:
        """Build a vocabulary from symbol frequencies.

        Symbols are sorted by descending frequency, then by code point.

        Args:
            counts: frequency of each symbol.
            min_freq: minimum frequency of a symbol in the vocabulary.
            vocab_size: maximum number of tokens, including `<unk>`; the rarest symbols are omitted.

        Raises:
            ConfigError: if no symbol is frequent enough.
            SourceError: if there are more than `MAX_VOCABULARY` tokens and `vocab_size` is None.
        """
        kept = [symbol for symbol, count in counts.items() if count >= max(min_freq, 1)]
        if not kept:
            highest = max(counts.values(), default=0)
            raise ConfigError(
                f"min_freq {min_freq} leaves no token: the highest frequency is {highest}"
            )
        kept.sort(key=lambda symbol: (-counts[symbol], symbol))
        if vocab_size is None and len(kept) >= MAX_VOCABULARY:
            raise SourceError(_too_many(len(kept)))
        return cls(kept if vocab_size is None else kept[: vocab_size - 1])

    def extended(
        self, counts: Mapping[str, int], *, min_freq: int = 1, vocab_size: int | None = None
    ) -> Self:
        """Return a vocabulary with the same ids, and symbols of another text after them.

        The new symbols are sorted by descending frequency, then by code point.

        Args:
            counts: frequency of each symbol of the other text; symbols of this vocabulary have no
                effect.
            min_freq: minimum frequency of a new symbol.
            vocab_size: maximum number of tokens, including `<unk>`. If this vocabulary already has
                as many, no symbols are added.

        Raises:
            SourceError: if there are more than `MAX_VOCABULARY` tokens and `vocab_size` is None.

        Examples:
            >>> from recurra.text.vocabulary import CharVocabulary
            >>> CharVocabulary("ab").extended({"b": 3, "c": 1, "d": 2}).tokens
            ('<unk>', 'a', 'b', 'd', 'c')
        """
        new = {symbol: count for symbol, count in counts.items() if symbol not in self.index}
        free = MAX_VOCABULARY if vocab_size is None else vocab_size - len(self)
        if free <= 0 or not any(count >= max(min_freq, 1) for count in new.values()):
            return self
        limit = None if vocab_size is None else free + 1
        added = self.from_counts(new, min_freq=min_freq, vocab_size=limit).tokens[1:]
        if len(self) + len(added) > MAX_VOCABULARY:
            raise SourceError(_too_many(len(self) + len(added)))
        return type(self)([*self.tokens[1:], *added])

    @classmethod
    def from_text(cls, text: str, *, min_freq: int = 1, vocab_size: int | None = None) -> Self:
        """Build a vocabulary from the symbol frequencies of a text; see `from_counts`.

        Raises:
            ConfigError, SourceError: as for `from_counts`.
        """
        return cls.from_counts(Counter(cls.split(text)), min_freq=min_freq, vocab_size=vocab_size)

    @staticmethod
    @abc.abstractmethod
    def split(text: str) -> Sequence[str]:
        """Split a text into symbols. Their concatenation is the text."""

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Ids by symbol, without `<unk>`."""
        return {symbol: token_id for token_id, symbol in enumerate(self.tokens) if token_id > 0}

    @cached_property
    def _characters(self) -> frozenset[str]:
        return frozenset("".join(self.tokens[1:]))

    def missing_characters(self, text: str) -> list[str]:
        """Return the characters that are part of no symbol, in the order of the text."""
        return [character for character in text if character not in self._characters]

    def __len__(self) -> int:
        """Return the number of symbols plus one for `<unk>`."""
        return len(self.tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the concatenated symbols; `<unk>` is decoded to U+FFFD."""
        return "".join([self._texts[token_id] for token_id in checked_ids(ids, len(self)).tolist()])

    def decoder(self) -> IncrementalDecoder:
        """Return a decoder that buffers nothing."""
        return SymbolDecoder(self._texts)

    def label(self, token_id: int) -> str:
        """Return the symbol in printable form."""
        return printable(self.tokens[token_id])

    def to_dict(self) -> dict[str, Any]:
        """Return the kind and the tokens, including `<unk>`."""
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
                    f"vocabulary field 'tokens' has {shortened(token)}, which is not a {cls.kind}"
                )
        if len(set(tokens)) < len(tokens):
            raise ConfigError("vocabulary field 'tokens' has a duplicate token")
        return cls(tokens[1:])

    @classmethod
    def _is_token(cls, value: Any) -> bool:
        # JSON can contain lone surrogates, but they cannot be encoded for output.
        return (
            isinstance(value, str)
            and len(cls.split(value)) == 1
            and _SURROGATE.search(value) is None
        )


@final
class CharVocabulary(SymbolVocabulary):
    """Vocabulary of characters (Unicode code points) and `<unk>`."""

    kind = "char"

    @staticmethod
    def split(text: str) -> str:
        """Return the text itself, which is a sequence of characters."""
        return text

    @cached_property
    def _id_of_code_point(self) -> Ids:
        # -1 marks unknown characters. The last entry is for all larger code points.
        table = np.full(max(map(ord, self.tokens[1:]), default=0) + 2, -1, dtype=np.int64)
        table[[ord(symbol) for symbol in self.tokens[1:]]] = range(1, len(self))
        return table

    def encode(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """Return one id per character, (characters,) int64."""
        table = self._id_of_code_point
        ids = table[np.minimum(code_points(text), len(table) - 1)]
        missing = np.flatnonzero(ids < 0)
        if len(missing) and unknown != "replace":
            position = int(missing[0])
            raise UnknownTokenError(text[position], position)
        ids[missing] = 0
        return ids

    def byte_lengths(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """Return the number of UTF-8 bytes of each character, (characters,) int64."""
        self.encode(text, unknown)
        utf8(text)
        points = code_points(text)
        lengths = np.ones(len(text), dtype=np.int64)
        for first_longer_point in (0x80, 0x800, 0x10000):
            lengths += points >= first_longer_point
        return lengths


@final
class WordVocabulary(SymbolVocabulary):
    """Vocabulary of words, punctuation marks and white-space characters; see `words.py`."""

    kind = "word"

    @staticmethod
    def split(text: str) -> list[str]:
        """Split a text into word tokens."""
        return split_words(text)

    def encode(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """Return one id per word token, (tokens,) int64."""
        tokens = split_words(text)
        ids = np.fromiter((self.index.get(token, 0) for token in tokens), np.int64, len(tokens))
        if unknown != "replace" and not ids.all():
            first = int(np.argmin(ids))
            raise UnknownTokenError(tokens[first], sum(map(len, tokens[:first])))
        return ids

    def byte_lengths(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """Return the number of UTF-8 bytes of each word token, (tokens,) int64."""
        self.encode(text, unknown)
        utf8(text)
        return np.array([len(word.encode()) for word in split_words(text)], dtype=np.int64)


def _too_many(count: int) -> str:
    return (
        f"the text has {count:,} different tokens; a vocabulary has at most {MAX_VOCABULARY:,};"
        " omit rare tokens with --vocab-size or --min-freq"
    )


def checked_ids(ids: Iterable[int], size: int) -> Ids:
    """Return an iterable of ids as an array, (ids,) int64.

    Raises:
        IndexError: if an id is not between 0 and `size` - 1.
    """
    array = np.asarray(ids if isinstance(ids, np.ndarray) else [int(i) for i in ids], np.int64)
    outside = array[(array < 0) | (array >= size)]
    if len(outside):
        raise IndexError(f"token id {outside[0]} is outside the vocabulary of {size}")
    return array
