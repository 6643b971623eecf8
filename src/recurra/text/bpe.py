"""Byte-level byte-pair encoding with the `tokenizers` library (bpe extra).

Merges are learned with the algorithm of Sennrich et al. (2016) over GPT-2's 256-byte alphabet and
its splitting of text into words, so every string can be written and nothing is ever unknown. Does
not know which part of a text is for training: it is given that part.
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
"""The 256 bytes and one merge."""

# The library's memory for one string is some hundred times its length.
_PIECE_CHARS = 1 << 14


@final
class BpeVocabulary(Vocabulary):
    """Frequent byte sequences as single tokens."""

    kind = "bpe"

    def __init__(self, tokenizer: Tokenizer) -> None:
        """From a byte-level BPE tokenizer; see `train` and `vocabulary_from_dict`."""
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
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Build the tokenizer anew from its names and merges alone.

        Whatever else its JSON says has no effect, and none of it reaches the library unchecked: on
        some untrusted contents it aborts instead of raising.
        """
        tokenizer = values.get("tokenizer")
        model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
        if not isinstance(model, dict):
            raise ConfigError("vocabulary field 'tokenizer' has no model")
        names = _checked_names(model.get("vocab"))
        return cls(_tokenizer(_tokenizers(), names, _checked_merges(model.get("merges"), names)))


def _tokenizer(library: Any, names: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """A byte-level tokenizer of the library's."""
    tokenizer = library.Tokenizer(library.models.BPE(vocab=names, merges=merges))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _checked_names(names: Any) -> dict[str, int]:
    """The id of each token, by the name the library gives it: a letter for each byte.

    Raises:
        ConfigError: a name is not byte-level, a byte has none, or the ids are not 0 to n - 1.
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
                f"vocabulary field 'tokenizer.model.vocab' is not byte-level: {shortened(name)}"
            )
        if type(token_id) is not int or not 0 <= token_id < len(names) or taken[token_id]:
            raise ConfigError(
                f"vocabulary field 'tokenizer.model.vocab' gives {shortened(name)} the id"
                f" {shortened(token_id)}, and the ids must be 0 to {len(names) - 1}, each used once"
            )
        taken[token_id] = True
    for letter, value in _BYTE_OF_LETTER.items():
        if letter not in names:
            raise ConfigError(f"vocabulary field 'tokenizer.model.vocab' lacks the byte {value}")
    return names


def _checked_merges(merges: Any, names: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs that are joined, in this order.

    Raises:
        ConfigError: one is no pair of known names, or what it makes has no name.
    """
    if not isinstance(merges, list):
        raise ConfigError("vocabulary field 'tokenizer.model.merges' is not a list")
    checked = []
    for pair in merges:
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(isinstance(name, str) and name in names for name in pair):
            raise ConfigError(
                f"vocabulary field 'tokenizer.model.merges' has {shortened(pair)}, which is no pair"
                " of tokens"
            )
        if "".join(pair) not in names:
            raise ConfigError(
                f"vocabulary field 'tokenizer.model.merges' has {shortened(pair)}, which makes no"
                " token"
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
