"""Convert a stream of prepared text to a file of ids in one pass.

The vocabulary is built from the training part only, and the end of this part is unknown until the
stream has ended. Characters and words are therefore first written as provisional ids, in order of
first appearance. The provisional ids are counted, sorted by frequency and mapped to the final ids.
For BPE, the text itself is stored until the merges are learned. Memory use does not grow with the
length of the text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from recurra.config import TextConfig
from recurra.data.provisional import (
    CHUNK_IDS,
    CharIndexer,
    ProvisionalFile,
    WordIndexer,
    by_part,
    read_ids,
    smallest_dtype,
)
from recurra.errors import ConfigError, SourceError
from recurra.text.bpe import BpeVocabulary
from recurra.text.byte_vocabulary import ByteVocabulary
from recurra.text.unicode import printable
from recurra.text.vocabulary import SymbolVocabulary
from recurra.text.words import cut_at_borders

_logger = logging.getLogger("recurra")
Chunk = TypeVar("Chunk", str, bytes)


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Size of an indexed text and of its validation part, in tokens, characters and bytes."""

    num_tokens: int
    num_train: int
    num_chars: int
    num_bytes: int
    val_chars: int
    val_bytes: int


def training_share(total: int, val_fraction: float) -> int:
    """Return (1 - val_fraction) * total, rounded down.

    The fraction is evaluated in decimal, not in binary: 0.1 of 30 is exactly 3.
    """
    return int((1 - Fraction(str(val_fraction))) * total)


def index_bytes(
    chunks: Iterable[bytes], config: TextConfig, target: Path
) -> tuple[ByteVocabulary, Extent]:
    """Write the bytes of a text as ids to `target`.

    Characters are counted by the bytes that begin a character in UTF-8.

    Raises:
        SourceError: if the training part has fewer than two tokens.
    """
    if config.vocab_size is not None or config.min_freq > 1:
        _logger.warning(
            "vocab_size and min_freq are ignored: a byte vocabulary always has 256 tokens"
        )
    num_tokens = 0
    with target.open("wb") as file:
        for chunk in _truncated(chunks, config.max_tokens):
            file.write(chunk)
            num_tokens += len(chunk)
    num_train = _training_tokens(num_tokens, config)
    chars = [0, 0]
    with target.open("rb") as file:
        for part, ids in by_part(read_ids(file, [(np.dtype(np.uint8), num_tokens)]), num_train):
            chars[part] += int(np.count_nonzero((ids & 0xC0) != 0x80))
    return ByteVocabulary(), Extent(
        num_tokens=num_tokens,
        num_train=num_train,
        num_chars=sum(chars),
        num_bytes=num_tokens,
        val_chars=chars[1],
        val_bytes=num_tokens - num_train,
    )


def index_symbols(
    chunks: Iterable[str],
    config: TextConfig,
    target: Path,
    work: Path,
    base: SymbolVocabulary | None = None,
) -> tuple[SymbolVocabulary, Extent]:
    """Write the character or word ids of a text to `target`.

    The provisional ids are stored in the directory `work`. The tokens of a base keep their ids.

    Raises:
        ConfigError: if `min_freq` leaves no token in the vocabulary, or the base lacks a token and
            `new_tokens` is "error".
        SourceError: if the training part has fewer than two tokens or too many different ones.
    """
    indexer = CharIndexer() if config.tokens == "char" else WordIndexer()
    provisional = ProvisionalFile(work / "provisional.bin")
    provisional.write(indexer, chunks, config.max_tokens)
    num_train = _training_tokens(provisional.num_tokens, config)
    symbols = indexer.symbols
    counts = provisional.count(len(symbols), num_train)
    vocabulary = _vocabulary(
        indexer.vocabulary, dict(zip(symbols, counts[0].tolist(), strict=True)), config, base
    )
    final_ids = np.array(
        [vocabulary.index.get(symbol, 0) for symbol in symbols],
        dtype=smallest_dtype(len(vocabulary)),
    )
    provisional.rewrite(final_ids, target)
    # Lengths of the symbols, not of the tokens: a symbol that became <unk> keeps its length.
    chars = counts @ np.array([len(symbol) for symbol in symbols])
    sizes = counts @ np.array([len(symbol.encode()) for symbol in symbols])
    return vocabulary, Extent(
        num_tokens=provisional.num_tokens,
        num_train=num_train,
        num_chars=int(chars.sum()),
        num_bytes=int(sizes.sum()),
        val_chars=int(chars[1]),
        val_bytes=int(sizes[1]),
    )


def _vocabulary(
    kind: type[SymbolVocabulary],
    counts: dict[str, int],
    config: TextConfig,
    base: SymbolVocabulary | None,
) -> SymbolVocabulary:
    """Return the vocabulary of symbols with these frequencies in the training part."""
    if base is None:
        return kind.from_counts(counts, min_freq=config.min_freq, vocab_size=config.vocab_size)
    new = [symbol for symbol, count in counts.items() if count > 0 and symbol not in base.index]
    if new and config.new_tokens == "error":
        names = ", ".join(map(printable, new[:10])) + (" ..." if len(new) > 10 else "")
        raise ConfigError(
            f"the vocabulary of the base run lacks {len(new):,} tokens of this text: {names}; set"
            " new_tokens to add or replace, or remove them from the text"
        )
    if config.new_tokens == "replace":
        return base
    return base.extended(counts, min_freq=config.min_freq, vocab_size=config.vocab_size)


def index_bpe(
    chunks: Iterable[str],
    config: TextConfig,
    target: Path,
    work: Path,
    base: BpeVocabulary | None = None,
) -> tuple[BpeVocabulary, Extent]:
    """Learn BPE merges from the training part and write the ids of a text to `target`.

    The text is stored in the directory `work`. It is split into training and validation part by
    the number of characters. With a base, no merges are learned: it can encode every text.

    Raises:
        ConfigError: if `vocab_size` is too small for BPE.
        MissingExtraError: if tokenizers is not installed.
        SourceError: if the training part has fewer than two tokens.
    """
    spool = work / "text.txt"
    num_chars = 0
    with spool.open("w", encoding="utf-8", newline="") as file:
        for chunk in _truncated(chunks, config.max_tokens):
            file.write(chunk)
            num_chars += len(chunk)
    train_chars = training_share(num_chars, config.val_fraction)
    with spool.open(encoding="utf-8", newline="") as file:
        training = cut_at_borders(_read_chars(file, train_chars))
        vocabulary = base or BpeVocabulary.train(
            training, vocab_size=config.vocab_size, min_freq=config.min_freq
        )
    tokens, sizes = [], []
    with spool.open(encoding="utf-8", newline="") as file, target.open("wb") as out:
        for part_chars in (train_chars, num_chars - train_chars):
            tokens.append(0)
            sizes.append(0)
            for text in cut_at_borders(_read_chars(file, part_chars)):
                ids = vocabulary.encode(text)
                out.write(ids.astype(smallest_dtype(len(vocabulary))).data)
                tokens[-1] += len(ids)
                sizes[-1] += int(vocabulary.piece_lengths[ids].sum())
    _require_two_tokens(tokens[0])
    return vocabulary, Extent(
        num_tokens=sum(tokens),
        num_train=tokens[0],
        num_chars=num_chars,
        num_bytes=sum(sizes),
        val_chars=num_chars - train_chars,
        val_bytes=sizes[1],
    )


def _read_chars(file: IO[str], count: int) -> Iterator[str]:
    while count > 0:
        text = file.read(min(count, CHUNK_IDS))
        count -= len(text)
        yield text


def _truncated(chunks: Iterable[Chunk], limit: int | None) -> Iterator[Chunk]:
    """Yield the first `limit` characters or bytes, without reading more chunks than necessary."""
    taken = 0
    for chunk in chunks:
        piece = chunk if limit is None else chunk[: limit - taken]
        taken += len(piece)
        yield piece
        if taken == limit:
            return


def _training_tokens(num_tokens: int, config: TextConfig) -> int:
    num_train = training_share(num_tokens, config.val_fraction)
    _require_two_tokens(num_train)
    return num_train


def _require_two_tokens(num_train: int) -> None:
    if num_train < 2:
        raise SourceError(
            f"the text is too short: its training part has {num_train} tokens; at least 2 are"
            " required"
        )
