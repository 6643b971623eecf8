"""Ids in order of first appearance, on disk, until the vocabulary is known.

`CharIndexer` and `WordIndexer` number symbols as they meet them; `ProvisionalFile` keeps the
numbers. Memory grows with the number of different symbols, not with the text. Knows neither the
order of the final vocabulary nor where the text comes from.
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
"""Ids read at a time."""


class CharIndexer:
    """Gives each character a provisional id, by order of first appearance."""

    vocabulary = CharVocabulary

    def __init__(self) -> None:
        self.symbols: list[str] = []
        self._table = np.full(0x110000, -1, dtype=np.int32)

    @property
    def num_symbols(self) -> int:
        """How many different characters were met so far."""
        return len(self.symbols)

    def pieces(self, chunks: Iterable[str]) -> Iterable[str]:
        """The chunks as they are: a character is never cut."""
        return chunks

    def index(self, text: str) -> AnyIds:
        """One provisional id per character."""
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
        # No code point is beyond the table; clip only spares numpy the check, half of the time.
        return self._table.take(points, mode="clip")


class WordIndexer:
    """Gives each word token a provisional id, by order of first appearance."""

    vocabulary = WordVocabulary

    def __init__(self) -> None:
        self._table = _Appearances()

    @property
    def symbols(self) -> list[str]:
        """The words met so far, by id."""
        return list(self._table)

    @property
    def num_symbols(self) -> int:
        """How many different words were met so far."""
        return len(self._table)

    def pieces(self, chunks: Iterable[str]) -> Iterable[str]:
        """The text cut where no word is cut."""
        return cut_at_borders(chunks)

    def index(self, text: str) -> AnyIds:
        """One provisional id per word token."""
        words = split_words(text)
        return np.fromiter(map(self._table.__getitem__, words), np.uint32, len(words))


class _Appearances(dict[str, int]):
    """A dictionary that numbers what it is asked for the first time."""

    def __missing__(self, key: str) -> int:
        self[key] = number = len(self)
        return number


class ProvisionalFile:
    """Provisional ids on disk, each stretch in the integer type that was enough when it came."""

    def __init__(self, path: Path) -> None:
        self.num_tokens = 0
        self._path = path
        self._stretches: list[tuple[np.dtype[Any], int]] = []

    def write(
        self, indexer: CharIndexer | WordIndexer, chunks: Iterable[str], limit: int | None
    ) -> None:
        """Index the stream up to `limit` tokens; what comes after them is not read."""
        with self._path.open("wb") as file:
            for text in indexer.pieces(chunks):
                ids = indexer.index(text)
                if limit is not None:
                    ids = ids[: limit - self.num_tokens]
                self._append(file, ids.astype(smallest_dtype(indexer.num_symbols)))
                if self.num_tokens == limit:
                    return

    def count(self, num_symbols: int, num_train: int) -> npt.NDArray[np.int64]:
        """How often each symbol occurs in the training and the validation part: (2, symbols)."""
        counts = np.zeros((2, num_symbols), dtype=np.int64)
        with self._path.open("rb") as file:
            for part, ids in by_part(read_ids(file, self._stretches), num_train):
                counts[part] += np.bincount(ids, minlength=num_symbols)
        return counts

    def rewrite(self, final_ids: AnyIds, target: Path) -> None:
        """Write `final_ids[provisional id]` of every token to another file."""
        with self._path.open("rb") as file, target.open("wb") as out:
            for ids in read_ids(file, self._stretches):
                out.write(final_ids.take(ids, mode="clip").data)

    def _append(self, file: IO[bytes], ids: AnyIds) -> None:
        file.write(ids.data)
        self.num_tokens += len(ids)
        if self._stretches and self._stretches[-1][0] == ids.dtype:
            self._stretches[-1] = (ids.dtype, self._stretches[-1][1] + len(ids))
        else:
            self._stretches.append((ids.dtype, len(ids)))


def read_ids(file: IO[bytes], stretches: Iterable[tuple[np.dtype[Any], int]]) -> Iterator[AnyIds]:
    """The ids of a file that holds (integer type, number of ids) one after the other, in chunks."""
    for dtype, length in stretches:
        for start in range(0, length, CHUNK_IDS):
            yield np.fromfile(file, dtype, min(CHUNK_IDS, length - start))


def by_part(chunks: Iterable[AnyIds], num_train: int) -> Iterator[tuple[int, AnyIds]]:
    """(0, ids) for the training part, then (1, ids) for the validation part."""
    position = 0
    for ids in chunks:
        border = max(num_train - position, 0)
        yield 0, ids[:border]
        yield 1, ids[border:]
        position += len(ids)


def smallest_dtype(num_values: int) -> np.dtype[Any]:
    """The smallest of uint8, uint16 and uint32 (little-endian) for the ids 0 to num_values - 1."""
    return np.dtype(np.min_scalar_type(max(num_values - 1, 0))).newbyteorder("<")
