"""Resolve source arguments (files, directories, stdin, corpus names) to byte streams.

Files, folders, standard input (`-`), names of the catalogue, or nothing at all, which is the
bundled English story. Knows no encoding, no newline and no token: see corpus.py for those.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from recurra.errors import SourceError
from recurra.text import catalogue

CHUNK_BYTES = 1 << 20
"""Bytes read at a time."""

STDIN = "-"
COMPARISON_FILES = ("comparison.json", "results.json", "comparison.svg")
"""What a comparison writes beside its runs, the first when it begins; no text."""
_NUL_SEARCH_BYTES = 1 << 16
_LONGEST_NAME = 120
# Fed to the digest between two files, so that moving text from one to the next is a change.
_FILE_BORDER = b"\0next file\0"
_logger = logging.getLogger("recurra")


@dataclass(frozen=True)
class RawSource:
    """One stream of bytes and what to call it."""

    name: str
    """As the person wrote it; stands in messages and records."""

    path: Path | None
    """The file; None is standard input."""

    @property
    def rereadable(self) -> bool:
        """Whether reading it does not use it up: true of regular files, not of pipes."""
        return self.path is not None and self.path.is_file()

    def chunks(self) -> Iterator[bytes]:
        """The bytes, at most `CHUNK_BYTES` at a time.

        Raises:
            SourceError: it cannot be read, or there is nothing in it.
        """
        empty = True
        try:
            for chunk in self._read():
                empty = False
                yield chunk
        except OSError as error:
            raise SourceError(f"cannot read {self.name}: {error.strerror or error}") from error
        if empty:
            raise SourceError(f"{self.name} is empty")

    def _read(self) -> Iterator[bytes]:
        if self.path is None:
            # read1 gives what has arrived: a slow pipe is cut by max_tokens without waiting.
            if sys.stdin is None:
                raise SourceError("standard input is closed")
            pipe = cast(io.BufferedReader, sys.stdin.buffer)
            while chunk := pipe.read1(CHUNK_BYTES):
                yield chunk
            return
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


class SourceReader:
    """Reads sources once, in order, and keeps account of what it has read so far.

    Attributes: `num_bytes`, raw bytes read; `complete`, whether the end was reached.
    """

    def __init__(self, sources: Sequence[RawSource]) -> None:
        self.num_bytes = 0
        self.complete = False
        self._sources = sources
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Digest of the bytes read so far; of one file read to its end, the file's own SHA-256."""
        return self._digest.hexdigest()

    def files(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """(name, chunks) of every source; its chunks must be used up before the next is asked."""
        for position, source in enumerate(self._sources):
            yield source.name, self._account(source, b"" if position == 0 else _FILE_BORDER)
        self.complete = True

    def _account(self, source: RawSource, border: bytes) -> Iterator[bytes]:
        self._digest.update(border)
        for chunk in source.chunks():
            self._digest.update(chunk)
            self.num_bytes += len(chunk)
            yield chunk


def digest_of(sources: Sequence[RawSource], limit: int | None = None) -> str:
    """SHA-256 as a `SourceReader` has it after `limit` bytes (at a chunk's end), or after all."""
    reader = SourceReader(sources)
    for _, chunks in reader.files():
        for _ in chunks:
            if limit is not None and reader.num_bytes >= limit:
                return reader.sha256
    return reader.sha256


def resolve(sources: Sequence[str | Path], *, nul_is_text: bool = False) -> list[RawSource]:
    """Return the streams of the given names; a path that exists wins over a corpus name.

    `nul_is_text` says that the encoding writes NUL bytes (UTF-16, UTF-32), so that they do not
    mark a folder's file as binary.

    Raises:
        SourceError: no such file, a folder without text files, or `-` given twice.
        CorpusError: a named corpus is neither here nor to be fetched.
    """
    names = source_names(sources)
    if names.count(STDIN) > 1:
        raise SourceError("- (standard input) is given twice, but it can be read only once")
    found: list[RawSource] = []
    for name in names:
        found += _resolve_one(name, nul_is_text)
    return found


def source_names(sources: Sequence[str | Path]) -> list[str]:
    """Return the sources as given; the bundled story if there are none."""
    # A single string is a sequence too, but of characters.
    given = [sources] if isinstance(sources, str | Path) else sources
    return [str(source) for source in given] or [catalogue.DEFAULT_CORPUS]


def _resolve_one(name: str, nul_is_text: bool) -> list[RawSource]:
    if name == STDIN:
        return [RawSource("standard input", None)]
    # os.path.exists, unlike Path.exists, is also false for names no file system allows.
    if os.path.exists(name):
        if os.path.isdir(name):
            return _text_files(Path(name), nul_is_text)
        return [RawSource(name, Path(name))]
    if name in catalogue.names():
        return [RawSource(name, catalogue.locate(name))]
    raise SourceError(_missing(name))


def _missing(name: str) -> str:
    shown = name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..."
    near = catalogue.nearest(name)
    hint = f"did you mean {catalogue.listed(near)}" if near else f"there are {_all_names()}"
    return f"no such file: {shown!r}; it is no corpus name either ({hint})"


def _all_names() -> str:
    return ", ".join(catalogue.names())


def _text_files(folder: Path, nul_is_text: bool) -> list[RawSource]:
    """The text files below a folder, by sorted path; hidden, empty and binary ones are left out."""
    found, binary = [], []
    for path in sorted(_visible_files(folder), key=lambda path: path.parts):
        source = RawSource(str(path), path)
        try:
            with path.open("rb") as file:
                head = file.read(_NUL_SEARCH_BYTES)
        except OSError as error:
            raise SourceError(f"cannot read {path}: {error.strerror}") from error
        if b"\0" in head and not nul_is_text:
            binary.append(path)
        elif head:
            found.append(source)
    if not found:
        others = f" ({len(binary)} with NUL bytes in them are none)" if binary else ""
        raise SourceError(f"the folder {folder} has no text files{others}")
    for path in binary:
        _logger.warning("%s is skipped: it contains NUL bytes, so it is not text", path)
    return found


def _visible_files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise SourceError(f"cannot read {error.filename}: {error.strerror}") from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        if "tokens.bin" in files and "config.json" in files:
            _logger.info("%s is skipped: it is a run", parent)
            folders.clear()
            continue
        # os.walk goes into what is left in the list.
        folders[:] = [name for name in folders if not name.startswith(".")]
        own = COMPARISON_FILES if COMPARISON_FILES[0] in files else ()
        for name in files:
            path = Path(parent, name)
            if not name.startswith(".") and name not in own and path.is_file():
                yield path
