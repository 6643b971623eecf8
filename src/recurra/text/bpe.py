"""Byte-level byte-pair encoding, by the `tokenizers` library (extra `bpe`).

Merges are learned with the algorithm of Sennrich et al. (2016) over GPT-2's 256-byte alphabet and
its splitting of text into words, so every string can be written and nothing is ever unknown. Does
not know which part of a text is for training: it is given that part.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np

from recurra.config import UnknownRule
from recurra.errors import ConfigError, MissingExtraError
from recurra.text.decoding import IncrementalDecoder, Utf8Decoder, decode_utf8
from recurra.text.unicode import label_bytes, utf8
from recurra.text.vocabulary import Ids, Vocabulary, checked_ids
from recurra.text.words import cut_at_borders, slices

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_VOCAB_SIZE = 512
SMALLEST_VOCAB_SIZE = 257
"""The 256 bytes and one merge."""

# The library's memory for one string is some hundred times its length.
_PIECE_CHARS = 1 << 14


@final
class BpeVocabulary(Vocabulary):
    """Frequent byte sequences as single tokens."""

    kind = "bpe"

    def __init__(self, tokenizer: Tokenizer) -> None:
        """From a byte-level BPE tokenizer; see `train` and `Vocabulary.from_dict`."""
        self._tokenizer = tokenizer
        names = tokenizer.get_vocab()
        self._pieces = tuple(_bytes_of(name) for name in sorted(names, key=lambda n: names[n]))

    @classmethod
    def train(
        cls, chunks: Iterable[str], *, vocab_size: int | None = None, min_freq: int = 1
    ) -> Self:
        """Learn merges from a text in chunks; no chunk may end inside a word.

        Fewer than `vocab_size` (512 by default) tokens result when no pair is left that occurs
        twice (or `min_freq` times, if that is more).

        Raises:
            ConfigError: vocab_size is below 257.
            MissingExtraError: tokenizers is not installed.
        """
        size = DEFAULT_VOCAB_SIZE if vocab_size is None else vocab_size
        if size < SMALLEST_VOCAB_SIZE:
            raise ConfigError(
                f"vocab_size is {size}; bpe needs at least {SMALLEST_VOCAB_SIZE}: the 256 bytes and"
                " one merge"
            )
        library = _tokenizers()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = library.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=max(2, min_freq),
            show_progress=False,
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator(_small_pieces(chunks), trainer)
        return cls(tokenizer)

    def __len__(self) -> int:
        """Bytes and merges."""
        return len(self._pieces)

    def encode(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """The ids of the text's pieces; nothing is ever unknown."""
        utf8(text)
        pieces = list(_small_pieces([text]))
        encodings = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        parts = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def byte_lengths(self, text: str, unknown: UnknownRule = "error") -> Ids:
        """The number of bytes in each piece."""
        return self.piece_lengths[self.encode(text)]

    @cached_property
    def piece_lengths(self) -> Ids:
        """The number of bytes of every token in the table, (vocabulary,) int64."""
        return np.array([len(piece) for piece in self._pieces], dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The pieces' bytes read as UTF-8."""
        return decode_utf8(
            b"".join([self._pieces[i] for i in checked_ids(ids, len(self)).tolist()])
        )

    def decoder(self) -> IncrementalDecoder:
        """A decoder that keeps the bytes of unfinished characters."""
        return Utf8Decoder(self._pieces)

    def label(self, token_id: int) -> str:
        """The piece's text, or its bytes in hexadecimal when it is no text by itself."""
        return label_bytes(self._pieces[token_id])

    def to_dict(self) -> dict[str, Any]:
        """Kind, and the tokenizer as the library's own JSON."""
        return {"kind": self.kind, "tokenizer": json.loads(self._tokenizer.to_str())}

    @classmethod
    def _from_values(cls, values: Mapping[str, Any]) -> Self:
        library = _tokenizers()
        try:
            tokenizer = library.Tokenizer.from_str(json.dumps(values.get("tokenizer")))
        # The library raises nothing more precise.
        except Exception as error:
            raise ConfigError(
                f"vocabulary field 'tokenizer' is not a tokenizer's JSON: {error}"
            ) from error
        try:
            return cls(tokenizer)
        except KeyError as error:
            raise ConfigError(
                f"vocabulary field 'tokenizer' is not byte-level: it has the letter {error}"
            ) from error


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError("--tokens bpe", "bpe") from error
    return tokenizers


def _small_pieces(chunks: Iterable[str]) -> Iterable[str]:
    """The text in pieces that the library takes quickly; their tokens are those of the whole."""
    for chunk in chunks:
        yield from cut_at_borders(slices(chunk, _PIECE_CHARS))


def _alphabet() -> dict[str, int]:
    """GPT-2's letter for each byte, the other way round.

    Bytes that print in Latin-1 are their own letter; the others take the code points from 256 on.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printing]
    return {chr(value): value for value in printing} | {
        chr(256 + position): value for position, value in enumerate(others)
    }


_BYTE_OF_LETTER = _alphabet()


def _bytes_of(name: str) -> bytes:
    return bytes(_BYTE_OF_LETTER[letter] for letter in name)
