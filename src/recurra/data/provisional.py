"""Provisional ids on disk, used until the vocabulary is known.

`CharIndexer` and `WordIndexer` number symbols in order of first appearance. `ProvisionalFile`
stores these numbers. Memory use grows with the number of different symbols, not with the length of
the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from recurra.text.unicode import code_points
from recurra.text.vocabulary import CharVocabulary, WordVocabulary
from recurra.text.words import cut_at_borders, split_words

AnyIds = npt.NDArray[Any]
CHUNK_IDS = 1 << 20
"""Number of ids that are read at a time."""


class CharIndexer:
    """An index that assigns provisional ids to characters, in order of first appearance."""

    vocabulary = CharVocabulary

    def __init__(self) -> None:
        self.symbols: list[str] = []
        self._table = np.full(0x110000, -1, dtype=np.int32)

    @property
    def num_symbols(self) -> int:
        """Number of different characters so far."""
        return len(self.symbols)

    def pieces(self, chunks: Iterable[str]) -> Iterable[str]:
        """Return the chunks unchanged: no boundary is inside a character."""
        return chunks

    def index(self, text: str) -> AnyIds:
        """Return one provisional id per character, (characters,) int32."""
        points = code_points(text)
        ids = self._look_up(points)
        if ids.min() < 0:
            new, first = np.unique(points[ids < 0], return_index=True)
            new = new[np.argsort(first)]
            self._table[new] = np.arange(len(self.symbols), len(self.symbols) + len(new))
            self.symbols += map(chr, new.tolist())
            ids = self._look_up(points)
        return ids

    def _look_up(self, points: npt.NDArray[np.uint32]) -> AnyIds:
        # The table has all code points; mode="clip" omits the bounds check and halves the time.
        return self._table.take(points, mode="clip")


class WordIndexer:
    """An index that assigns provisional ids to word tokens, in order of first appearance."""

    vocabulary = WordVocabulary

    def __init__(self) -> None:
        self._table = _NumberedKeys()

    @property
    def symbols(self) -> list[str]:
        """The different words so far, in order of their ids."""
        return list(self._table)

    @property
    def num_symbols(self) -> int:
        """Number of different words so far."""
        return len(self._table)

    def pieces(self, chunks: Iterable[str]) -> Iterable[str]:
        """Split the text again so that no boundary is inside a word."""
        return cut_at_borders(chunks)

    def index(self, text: str) -> AnyIds:
        """Return one provisional id per word token, (words,) uint32."""
        words = split_words(text)
        return np.fromiter(map(self._table.__getitem__, words), np.uint32, len(words))


class _NumberedKeys(dict[str, int]):
    """A dictionary that numbers its keys in order of first access."""

    def __missing__(self, key: str) -> int:
        self[key] = number = len(self)
        return number


class ProvisionalFile:
    """A file of provisional ids.

    Each segment is stored in the smallest integer type for the number of symbols at that time.
    """

    def __init__(self, path: Path) -> None:
        self.num_tokens = 0
        self._path = path
        self._segments: list[tuple[np.dtype[Any], int]] = []

    def write(
        self, indexer: CharIndexer | WordIndexer, chunks: Iterable[str], limit: int | None
    ) -> None:
        """Index the first `limit` tokens of a stream, without reading more than necessary."""
        with self._path.open("wb") as file:
            for text in indexer.pieces(chunks):
                ids = indexer.index(text)
                if limit is not None:
                    ids = ids[: limit - self.num_tokens]
                self._append(file, ids.astype(smallest_dtype(indexer.num_symbols)))
                if self.num_tokens == limit:
                    return

    def count(self, num_symbols: int, num_train: int) -> npt.NDArray[np.int64]:
        """Return the frequencies of all symbols, (2, symbols).

        The first row is for the training part, the second for the validation part.
        """
        counts = np.zeros((2, num_symbols), dtype=np.int64)
        with self._path.open("rb") as file:
            for part, ids in by_part(read_ids(file, self._segments), num_train):
                counts[part] += np.bincount(ids, minlength=num_symbols)
        return counts

    def rewrite(self, final_ids: AnyIds, target: Path) -> None:
        """Write `final_ids[provisional_id]` for every token to another file."""
        with self._path.open("rb") as file, target.open("wb") as out:
            for ids in read_ids(file, self._segments):
                out.write(final_ids.take(ids, mode="clip").data)

    def _append(self, file: IO[bytes], ids: AnyIds) -> None:
        file.write(ids.data)
        self.num_tokens += len(ids)
        if self._segments and self._segments[-1][0] == ids.dtype:
            self._segments[-1] = (ids.dtype, self._segments[-1][1] + len(ids))
        else:
            self._segments.append((ids.dtype, len(ids)))


def read_ids(file: IO[bytes], segments: Iterable[tuple[np.dtype[Any], int]]) -> Iterator[AnyIds]:
    """Yield the ids of a file in chunks.

    `segments` is the integer type and the number of ids of each consecutive part of the file.
    """
    for dtype, length in segments:
        for start in range(0, length, CHUNK_IDS):
            yield np.fromfile(file, dtype, min(CHUNK_IDS, length - start))


def by_part(chunks: Iterable[AnyIds], num_train: int) -> Iterator[tuple[int, AnyIds]]:
    """Yield (0, ids) for the training part, then (1, ids) for the validation part."""
    position = 0
    for ids in chunks:
        border = max(num_train - position, 0)
        yield 0, ids[:border]
        yield 1, ids[border:]
        position += len(ids)


def smallest_dtype(num_values: int) -> np.dtype[Any]:
    """Return the smallest little-endian unsigned type for the ids 0 to num_values - 1."""
    return np.dtype(np.min_scalar_type(max(num_values - 1, 0))).newbyteorder("<")
