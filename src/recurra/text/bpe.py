"""Byte-level byte-pair encoding with the `tokenizers` library (bpe extra).

Merges are learned with the algorithm of Sennrich et al. (2016) over the 256-byte alphabet of GPT-2
and its pre-tokenization into words. Every string can therefore be encoded, and there is no unknown
token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np

from recurra.config import MAX_VOCABULARY, UnknownRule
from recurra.errors import ConfigError, MissingExtraError
from recurra.text.decoding import IncrementalDecoder, Utf8Decoder, decode_utf8
from recurra.text.unicode import label_bytes, utf8
from recurra.text.vocabulary import Ids, Vocabulary, checked_ids
from recurra.text.words import cut_at_borders, slices

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_VOCAB_SIZE = 512
SMALLEST_VOCAB_SIZE = 257
"""Number of tokens for the 256 bytes and one merge."""

# The library needs about a hundred times the length of a string in memory.
_PIECE_CHARS = 1 << 14


@final
class BpeVocabulary(Vocabulary):
    """Vocabulary of bytes and frequent byte sequences.

    Use `train` or `vocabulary_from_dict` to create one.
    """

    kind = "bpe"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        names = tokenizer.get_vocab()
        self._pieces = tuple(_bytes_of(name) for name in sorted(names, key=lambda n: names[n]))

    @classmethod
    def train(
        cls, chunks: Iterable[str], *, vocab_size: int | None = None, min_freq: int = 1
    ) -> Self:
        """Learn merges from a text and return the vocabulary.

        Args:
            chunks: the text in chunks. No chunk can end inside a word.
            vocab_size: maximum number of tokens; 512 if None. The vocabulary is smaller if no pair
                of tokens is frequent enough.
            min_freq: minimum frequency of a pair that is merged. Values below 2 have the effect
                of 2.

        Raises:
            ConfigError: if `vocab_size` is below 257.
            MissingExtraError: if tokenizers is not installed.
        """
        size = DEFAULT_VOCAB_SIZE if vocab_size is None else vocab_size
        if size < SMALLEST_VOCAB_SIZE:
            raise ConfigError(
                f"vocab_size is {size}; bpe needs at least {SMALLEST_VOCAB_SIZE}: the 256 bytes and"
                " one merge"
            )
        library = _tokenizers()
        tokenizer = _tokenizer(library, {}, [])
        trainer = library.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=max(2, min_freq),
            show_progress=False,
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator(_small_pieces(chunks), trainer)
        return cls(tokenizer)

    def __len__(self) -> int:
        """Return the number of tokens: 256 bytes and all merges."""
        return len(self._pieces)

    def encode(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """Return the ids of a text, (tokens,) int64. `unknown` has no effect.

        Raises:
            SourceError: if the text contains a lone surrogate, which has no UTF-8 encoding.
        """
        utf8(text)
        pieces = list(_small_pieces([text]))
        encodings = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        parts = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def byte_lengths(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """Return the number of bytes of each token of the text, (tokens,) int64."""
        return self.piece_lengths[self.encode(text)]

    @cached_property
    def piece_lengths(self) -> Ids:
        """Number of bytes of every token of the vocabulary, (vocabulary,) int64."""
        return np.array([len(piece) for piece in self._pieces], dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the bytes of the tokens, decoded as UTF-8."""
        return decode_utf8(
            b"".join([self._pieces[i] for i in checked_ids(ids, len(self)).tolist()])
        )

    def decoder(self) -> IncrementalDecoder:
        """Return a decoder that buffers the bytes of incomplete characters."""
        return Utf8Decoder(self._pieces)

    def label(self, token_id: int) -> str:
        """Return the token as text, or in hexadecimal if it is not valid UTF-8."""
        return label_bytes(self._pieces[token_id])

    def to_dict(self) -> dict[str, Any]:
        """Return the kind, and the tokenizer in the JSON format of the library."""
        return {"kind": self.kind, "tokenizer": json.loads(self._tokenizer.to_str())}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Build the tokenizer from its token names and merges.

        All other fields of its JSON are ignored. Names and merges are validated first, because the
        library aborts the process on some invalid contents instead of raising an exception.

        Raises:
            ConfigError: if the names or the merges are invalid. The message names the field.
            MissingExtraError: if tokenizers is not installed.
        """
        tokenizer = values.get("tokenizer")
        model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
        if not isinstance(model, dict):
            raise ConfigError("vocabulary field 'tokenizer' must be an object with a model")
        names = _checked_names(model.get("vocab"))
        return cls(_tokenizer(_tokenizers(), names, _checked_merges(model.get("merges"), names)))


def _tokenizer(library: Any, names: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """Return a byte-level tokenizer of the `tokenizers` library."""
    tokenizer = library.Tokenizer(library.models.BPE(vocab=names, merges=merges))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _checked_names(names: Any) -> dict[str, int]:
    """Check a mapping of token names to ids and return it.

    A name has one letter of GPT-2's alphabet for each byte of the token.

    Raises:
        ConfigError: if a name contains other letters, a single byte is missing, or the ids are not
            0 to n - 1.
    """
    if not isinstance(names, dict) or not len(_BYTE_OF_LETTER) <= len(names) <= MAX_VOCABULARY:
        raise ConfigError(
            f"vocabulary field 'tokenizer.model.vocab' must have {len(_BYTE_OF_LETTER)} to"
            f" {MAX_VOCABULARY:,} tokens"
        )
    taken = bytearray(len(names))
    for name, token_id in names.items():
        if not name or not _BYTE_OF_LETTER.keys() >= set(name):
            raise ConfigError(
                f"vocabulary field 'tokenizer.model.vocab' has {shortened(name)}, which is not"
                " byte-level"
            )
        if type(token_id) is not int or not 0 <= token_id < len(names) or taken[token_id]:
            raise ConfigError(
                f"vocabulary field 'tokenizer.model.vocab' gives {shortened(name)} the id"
                f" {shortened(token_id)}; the ids must be 0 to {len(names) - 1}, each used once"
            )
        taken[token_id] = True
    for letter, value in _BYTE_OF_LETTER.items():
        if letter not in names:
            raise ConfigError(f"vocabulary field 'tokenizer.model.vocab' lacks the byte {value}")
    return names


def _checked_merges(merges: Any, names: dict[str, int]) -> list[tuple[str, str]]:
    """Check a list of merges and return it as pairs of token names.

    Raises:
        ConfigError: if an item is not a pair of known names, or its concatenation is not a name.
    """
    if not isinstance(merges, list):
        raise ConfigError("vocabulary field 'tokenizer.model.merges' is not a list")
    checked = []
    for pair in merges:
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(isinstance(name, str) and name in names for name in pair):
            raise ConfigError(
                f"vocabulary field 'tokenizer.model.merges' has {shortened(pair)}, which is not a"
                " pair of tokens"
            )
        if "".join(pair) not in names:
            raise ConfigError(
                f"vocabulary field 'tokenizer.model.merges' has {shortened(pair)}, whose"
                " concatenation is not a token"
            )
        checked.append((pair[0], pair[1]))
    return checked


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError("--tokens bpe", "bpe") from error
    return tokenizers


def _small_pieces(chunks: Iterable[str]) -> Iterable[str]:
    """Split a text into pieces that are short enough for the library.

    The tokens of the pieces are the tokens of the whole text.
    """
    for chunk in chunks:
        yield from cut_at_borders(slices(chunk, _PIECE_CHARS))


def _alphabet() -> dict[str, int]:
    """Return the byte of each letter of GPT-2's alphabet.

    The letter of a byte is its Latin-1 character if that is printable. The letters of the other
    bytes are the code points from 256 on.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printing]
    return {chr(value): value for value in printing} | {
        chr(256 + position): value for position, value in enumerate(others)
    }


_BYTE_OF_LETTER = _alphabet()


def _bytes_of(name: str) -> bytes:
    return bytes(_BYTE_OF_LETTER[letter] for letter in name)
