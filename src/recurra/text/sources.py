"""Resolve sources (files, directories, stdin, corpus names, texts in memory) to byte streams.

A source is a file, a directory, `-` for standard input, the name of a corpus, or a `MemoryText`. If
no source is specified, the bundled English story is used. The bytes are decoded in `corpus.py`.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from recurra.errors import SourceError
from recurra.text import catalogue
from recurra.text.folders import FolderScan, scan_folder
from recurra.text.memory import MEMORY, MemoryText

CHUNK_BYTES = 1 << 20
"""Maximum number of bytes that are read at a time."""

STDIN = "-"
_MAX_NAME_CHARS = 120
# Separates two files in the digest, so that moving text between them changes the digest.
_FILE_BORDER = b"\0next file\0"


TextSource = str | Path | MemoryText


@dataclass(frozen=True)
class RawSource:
    """A stream of bytes and its name."""

    name: str
    """Name of the source as specified by the user, used in messages and records."""

    path: Path | None
    """Path of the file; None for standard input and for a text in memory."""

    memory: Iterator[bytes] | None = None
    """The chunks of a text in memory."""

    encoding: str | None = None
    """The encoding of the bytes; None for that of the configuration."""

    @property
    def rereadable(self) -> bool:
        """Whether the source can be read more than once: True for regular files only."""
        return self.path is not None and self.path.is_file()

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes in chunks of at most `CHUNK_BYTES`.

        Raises:
            SourceError: if the source cannot be read or is empty.
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
        if self.memory is not None:
            yield from filter(None, self.memory)
            return
        if self.path is None:
            # read1 returns available bytes at once, so max_tokens can end a slow pipe early.
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
    """A reader that reads sources once, in order, and hashes and counts their bytes.

    Attributes:
        num_bytes: number of bytes read so far.
        complete: whether all sources were read to their ends.
    """

    def __init__(self, sources: Sequence[RawSource]) -> None:
        self.num_bytes = 0
        self.complete = False
        self._sources = sources
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes read so far. For a single complete file, it is that of the file."""
        return self._digest.hexdigest()

    def files(self) -> Iterator[tuple[RawSource, Iterator[bytes]]]:
        """Yield each source with its chunks.

        All chunks must be consumed before the next source is requested.
        """
        for position, source in enumerate(self._sources):
            yield source, self._hashed_chunks(source, b"" if position == 0 else _FILE_BORDER)
        self.complete = True

    def _hashed_chunks(self, source: RawSource, border: bytes) -> Iterator[bytes]:
        self._digest.update(border)
        for chunk in source.chunks():
            self._digest.update(chunk)
            self.num_bytes += len(chunk)
            yield chunk


def digest_of(sources: Sequence[RawSource], limit: int | None = None) -> str:
    """Return the SHA-256 of a `SourceReader` after the chunk with byte `limit`, or at the end.

    Raises:
        SourceError: if a source cannot be read or is empty.
    """
    reader = SourceReader(sources)
    for _, chunks in reader.files():
        for _ in chunks:
            if limit is not None and reader.num_bytes >= limit:
                return reader.sha256
    return reader.sha256


def resolve(
    sources: Sequence[TextSource],
    *,
    encoding: str | None = None,
    nul_is_text: bool = False,
    separator: str | bytes = "\n",
) -> list[RawSource]:
    """Return the streams of the given sources.

    An existing path takes precedence over a corpus name.

    Args:
        sources: paths, corpus names, `-` or texts in memory.
        encoding: the encoding of the files of a directory, where others are skipped; None accepts
            any bytes.
        nul_is_text: whether text can contain NUL bytes, as in UTF-16 and UTF-32. Otherwise files of
            a directory that contain NUL bytes are skipped.
        separator: the text between two items of a text in memory.

    Raises:
        SourceError: if a file does not exist, a directory has no text files, or `-` is repeated.
        CorpusError: if a named corpus is not on this machine and cannot be downloaded.
    """
    names = source_names(sources)
    if names.count(STDIN) > 1:
        raise SourceError("- (standard input) is specified twice, but can be read only once")
    found: list[RawSource] = []
    for source in _as_sequence(sources) or names:
        if isinstance(source, MemoryText):
            found.append(RawSource(MEMORY, None, source.read(separator), source.encoding))
        elif is_folder(source):
            scan = scan_folder(Path(source), encoding, nul_is_text=nul_is_text)
            found += [RawSource(str(path), path) for path in _require_files(scan)]
        else:
            found.append(_resolve_one(str(source)))
    return found


def is_folder(source: TextSource) -> bool:
    """Return whether a source is a directory."""
    # Unlike Path.is_dir, os.path.isdir returns False for names that no file system supports.
    return not isinstance(source, MemoryText) and str(source) != STDIN and os.path.isdir(source)


def _require_files(scan: FolderScan) -> list[Path]:
    if not scan.files:
        reasons = ", ".join(f"{path}: {reason}" for path, reason in list(scan.skipped.items())[:3])
        skipped = f" (skipped: {reasons})" if reasons else ""
        raise SourceError(f"the directory {scan.folder} contains no text files{skipped}")
    return scan.files


def source_names(sources: Sequence[TextSource]) -> list[str]:
    """Return the sources as strings, or the name of the bundled story if there are none."""
    return [str(source) for source in _as_sequence(sources)] or [catalogue.DEFAULT_CORPUS]


def _as_sequence(sources: TextSource | Sequence[TextSource]) -> Sequence[TextSource]:
    # A string is also a sequence of strings, so a single source is handled separately.
    return [sources] if isinstance(sources, str | Path | MemoryText) else sources


def _resolve_one(name: str) -> RawSource:
    if name == STDIN:
        return RawSource("standard input", None)
    # Unlike Path.exists, os.path.exists returns False for names that no file system supports.
    if os.path.exists(name):
        return RawSource(name, Path(name))
    if name in catalogue.names():
        return RawSource(name, catalogue.locate(name))
    raise SourceError(_missing(name))


def _missing(name: str) -> str:
    shown = name if len(name) <= _MAX_NAME_CHARS else name[:_MAX_NAME_CHARS] + "..."
    similar = catalogue.nearest(name)
    if similar:
        hint = f"did you mean {catalogue.listed(similar)}?"
    else:
        hint = f"the corpora are {_all_names()}"
    return f"no such file: {shown!r}; it is not a corpus name either ({hint})"


def _all_names() -> str:
    return ", ".join(catalogue.names())
