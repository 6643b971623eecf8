"""`Document`: the token ids of a text, with the bytes and characters that each token covers.

Models with byte tokens are handled here: they read bytes unchanged, and invalid UTF-8 is shown as
U+FFFD.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recurra.config import TextConfig, UnknownRule
from recurra.errors import ConfigError
from recurra.inference.reading import IdArray
from recurra.inference.spans import character_sizes, characters_completed
from recurra.text.byte_vocabulary import ByteVocabulary
from recurra.text.corpus import prepare_text, read_bytes, read_text
from recurra.text.vocabulary import Vocabulary


class Document(NamedTuple):
    """The token ids of a text.

    Attributes:
        ids: (N,) integers, the token ids.
        text: the text that the ids encode.
        token_sizes: (N,) integers, the number of bytes that each token covers.
        char_sizes: (len(text),) integers, the number of bytes of each character. It has the same
            sum as `token_sizes`.
        unknown_id: the id of <unk>, or None.
    """

    ids: IdArray
    text: str
    token_sizes: IdArray
    char_sizes: IdArray
    unknown_id: int | None

    def extent(self, num_predicted: int) -> tuple[int, int]:
        """Return the number of characters and bytes of the `num_predicted` tokens after the first.

        A character belongs to the token that completes it. For example, if the first token is the
        first byte of "é", then "é" counts as predicted, although only its second byte is predicted.
        """
        ends = np.cumsum(self.token_sizes[: num_predicted + 1])
        first, end = int(ends[0]), int(ends[-1])
        return characters_completed(self.char_sizes, first, end), end - first


def encode_document(
    text: str | bytes,
    vocabulary: Vocabulary,
    config: TextConfig,
    unknown: UnknownRule = "replace",
) -> Document:
    """Return a text as a document, prepared in the same way as the training text.

    Args:
        text: a string, or bytes for a model with byte tokens.
        vocabulary: the vocabulary of the model.
        config: the text configuration of the training run.
        unknown: "error", or "replace" to encode symbols outside the vocabulary as <unk>.

    Raises:
        ConfigError: `text` is bytes, but the model does not have byte tokens.
        UnknownTokenError: a symbol is not in the vocabulary and `unknown` is "error".
    """
    if isinstance(text, bytes):
        return _encode_bytes(text, vocabulary, config)
    prepared = prepare_text(text, config)
    return Document(
        ids=vocabulary.encode(prepared, unknown),
        text=prepared,
        token_sizes=vocabulary.byte_lengths(prepared, unknown),
        char_sizes=character_sizes(prepared),
        unknown_id=vocabulary.unknown_id,
    )


def decode_document(ids: IdArray, vocabulary: Vocabulary) -> str | bytes:
    """Return the text of token ids; bytes for a model with byte tokens."""
    if isinstance(vocabulary, ByteVocabulary):
        return ids.astype(np.uint8).tobytes()
    return vocabulary.decode(ids)


def read_document(
    sources: Sequence[str | Path], vocabulary: Vocabulary, config: TextConfig
) -> str | bytes:
    """Return the prepared text of sources; bytes for a model with byte tokens.

    Raises:
        SourceError, CorpusError: a source cannot be read.
    """
    if isinstance(vocabulary, ByteVocabulary):
        return read_bytes(sources, config)
    return read_text(sources, config)


def extent_of_first(ids: IdArray, vocabulary: Vocabulary) -> tuple[int, int]:
    """Return the number of characters that the first id completes, and its number of bytes.

    Only the first two ids are used. An unknown token counts as one character.
    """
    if isinstance(vocabulary, ByteVocabulary):
        completes = len(ids) == 1 or (len(ids) > 1 and not bool(_continues(ids[1:2])[0]))
        # If the text starts with a continuation byte, that byte is not counted as a character.
        starts = len(ids) > 0 and not bool(_continues(ids[:1])[0])
        return int(completes and starts), len(ids[:1])
    first = vocabulary.decode(ids[:1])
    return len(first), len(first.encode("utf-8"))


def _encode_bytes(data: bytes, vocabulary: Vocabulary, config: TextConfig) -> Document:
    if not isinstance(vocabulary, ByteVocabulary):
        raise ConfigError(f"the model has {config.tokens} tokens, not bytes; pass a string")
    ids = vocabulary.encode_bytes(data)
    try:
        text = data.decode("utf-8")
        sizes = character_sizes(text)
    except UnicodeDecodeError:
        text, sizes = _replace_invalid(data, ids)
    return Document(ids, text, np.ones(len(ids), dtype=np.int64), sizes, None)


def _replace_invalid(data: bytes, ids: IdArray) -> tuple[str, IdArray]:
    """Decode bytes that are not valid UTF-8.

    Each byte that begins a character, together with its continuation bytes, gives one character;
    invalid sequences give U+FFFD. Returns the text and the number of bytes of each character.
    """
    starts = np.flatnonzero(~_continues(ids))
    if not len(starts) or starts[0] != 0:
        starts = np.concatenate([[0], starts])
    ends = np.append(starts[1:], len(data))
    decoded = (
        data[start:end].decode("utf-8", "replace") for start, end in zip(starts, ends, strict=True)
    )
    text = "".join(symbol if len(symbol) == 1 else "\ufffd" for symbol in decoded)
    return text, (ends - starts).astype(np.int64)


def _continues(ids: IdArray) -> IdArray:
    """Return a mask of the UTF-8 continuation bytes, 0b10xxxxxx."""
    continues: IdArray = (np.asarray(ids) & 0xC0) == 0x80
    return continues
