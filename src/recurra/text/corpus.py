"""Prepare text: decoding, newline conversion and letters-only cleaning.

All functions process a stream in chunks of about 1 MB. The result does not depend on the boundaries
of the chunks.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recurra.config import TextConfig
from recurra.errors import ConfigError, SourceError
from recurra.text.folders import FolderScan, scan_folder
from recurra.text.lines import shuffled_lines
from recurra.text.sources import RawSource, SourceReader, TextSource, is_folder, resolve

_BYTE_ORDER_MARK = "\ufeff"


def prepare_text(text: str, config: TextConfig) -> str:
    """Apply the newline conversion and letters-only cleaning of sources to one string."""
    if config.tokens == "byte":
        return text
    if config.newlines == "unify":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return LettersOnly().push(text) if config.letters_only else text


def read_text(sources: Sequence[TextSource], config: TextConfig) -> str:
    """Return the whole prepared text of the sources, which must fit into memory.

    Raises:
        ConfigError, SourceError, CorpusError: as for `iterate_text`.
    """
    return "".join(iterate_text(sources, config))


def read_bytes(sources: Sequence[TextSource], config: TextConfig) -> bytes:
    """Return all bytes of the sources, which must fit into memory, for byte tokens.

    Raises:
        ConfigError, SourceError, CorpusError: as for `iterate_bytes`.
    """
    return b"".join(iterate_bytes(sources, config))


def iterate_text(sources: Sequence[TextSource], config: TextConfig) -> Iterator[str]:
    """Yield the prepared text of the sources in non-empty chunks.

    Files are joined by `config.separator`, and the byte order mark of each file is removed. With
    byte tokens the text is only decoded.

    Raises:
        ConfigError: if the encoding is unknown.
        SourceError: if a source is missing, unreadable, empty or not in this encoding, or the text
            is empty after cleaning. For invalid bytes the message states the offset in the file.
        CorpusError: if a named corpus is not on this machine and cannot be downloaded.
    """
    return text_chunks(SourceReader(resolve_sources(sources, config)), config)


def iterate_bytes(sources: Sequence[TextSource], config: TextConfig) -> Iterator[bytes]:
    """Yield the unchanged bytes of the sources in chunks, with `config.separator` between files.

    Raises:
        ConfigError: if the encoding is unknown or cannot encode the separator.
        SourceError: if a source is missing, unreadable or empty.
        CorpusError: if a named corpus is not on this machine and cannot be downloaded.
    """
    return byte_chunks(SourceReader(resolve_sources(sources, config)), config)


def resolve_sources(sources: Sequence[TextSource], config: TextConfig) -> list[RawSource]:
    """Check the encoding and return the byte streams of the sources; see `sources.resolve`."""
    return resolve(sources, separator=config.separator, **_file_format(config))


def scan_folders(sources: Sequence[TextSource], config: TextConfig) -> list[FolderScan]:
    """Return the files of each source that is a directory, as `resolve_sources` reads them.

    Raises:
        ConfigError: if the encoding is unknown.
        SourceError: if a directory cannot be read.
    """
    kind = _file_format(config)
    return [scan_folder(Path(str(source)), **kind) for source in sources if is_folder(source)]


def _file_format(config: TextConfig) -> dict[str, Any]:
    """Return which files of a directory are text: `encoding` and `nul_is_text`."""
    nul_is_text = b"\0" in _encode("\n", config)
    return {
        "encoding": None if config.tokens == "byte" else config.encoding,
        "nul_is_text": nul_is_text,
    }


def text_chunks(reader: SourceReader, config: TextConfig) -> Iterator[str]:
    """Yield the chunks of `iterate_text` from a reader that hashes and counts the raw bytes."""
    letters = LettersOnly() if config.letters_only else None
    empty = True
    chunks = _joined(reader, config)
    if config.shuffle_lines:
        encoded = (text.encode() for text in chunks)
        chunks = (line.decode() for line in shuffled_lines(encoded))
    for text in chunks:
        if prepared := letters.push(text) if letters else text:
            empty = False
            yield prepared
    if empty:
        kept = "letters a-z, which letters-only keeps" if letters else "characters"
        raise SourceError(f"the text is empty: it contains no {kept}")


def byte_chunks(reader: SourceReader, config: TextConfig) -> Iterator[bytes]:
    """Yield the chunks of `iterate_bytes` from a reader that hashes and counts the raw bytes."""
    chunks = _joined_bytes(reader, config)
    return shuffled_lines(chunks) if config.shuffle_lines else chunks


def _joined_bytes(reader: SourceReader, config: TextConfig) -> Iterator[bytes]:
    separator = _encode(config.separator, config)
    for position, (_, chunks) in enumerate(reader.files()):
        if position > 0 and separator:
            yield separator
        yield from chunks


class LettersOnly:
    """Incremental text cleaning as in 'Dive into Deep Learning', section 8.2.

    In every line, each run of characters outside A-Z and a-z is replaced by one space. The line is
    then stripped and converted to lower case. Lines are joined without a separator.

    A gap between two letters is therefore removed if it contains a line end; otherwise it becomes
    one space. The gaps before the first letter and after the last letter are removed.
    """

    # Maps letters to lower case and every other byte except the line end to a space.
    _TABLE = re.sub(rb"[^a-z\n]", b" ", bytes(range(256)).lower())

    def __init__(self) -> None:
        # The gap at the end of the previous parts: empty, a space or a line end.
        self._gap = b"\n"

    def push(self, text: str) -> str:
        """Clean the next part of the stream and return it; a gap at its end is buffered."""
        data = self._gap + text.encode("ascii", "replace").translate(self._TABLE)
        data = re.sub(rb" {2,}", b" ", data).replace(b" \n", b"\n").replace(b"\n ", b"\n")
        body = data.rstrip(b" \n")
        gap = data[len(body) :]
        self._gap = b"\n" if b"\n" in gap else gap[:1]
        return body.replace(b"\n", b"").decode("ascii")


def _joined(reader: SourceReader, config: TextConfig) -> Iterator[str]:
    for position, (source, chunks) in enumerate(reader.files()):
        if position > 0:
            yield config.separator
        own = replace(config, encoding=source.encoding or config.encoding)
        yield from _decoded(source.name, chunks, own)


def _decoded(name: str, chunks: Iterator[bytes], config: TextConfig) -> Iterator[str]:
    """Yield the text of a file, with newlines and byte order mark handled as configured."""
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    unify = config.newlines == "unify" and config.tokens != "byte"
    at_start = config.tokens != "byte"
    for text, final in _strictly_decoded(name, chunks, config):
        if at_start and text:
            text, at_start = text.removeprefix(_BYTE_ORDER_MARK), False
        yield newlines.decode(text, final) if unify else text


def _strictly_decoded(
    name: str, chunks: Iterator[bytes], config: TextConfig
) -> Iterator[tuple[str, bool]]:
    """Yield the text of each chunk of a file, and whether it is the last chunk."""
    decoder = codecs.getincrementaldecoder(config.encoding)()
    offset = 0  # position of `chunk` in the file
    for chunk, final in _with_end(chunks):
        # An error position includes the bytes that are buffered from the previous chunk.
        buffered = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final)
            text.encode()  # Some codecs, such as raw_unicode_escape, accept lone surrogates.
        except UnicodeDecodeError as error:
            raise SourceError(_undecodable(name, offset - buffered, error, config)) from error
        except UnicodeError as error:
            raise SourceError(f"{name} is not {config.encoding} text: {error}") from error
        offset += len(chunk)
        yield text, final


def _with_end(chunks: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    for chunk in chunks:
        yield chunk, False
    yield b"", True


def _undecodable(name: str, start: int, error: UnicodeDecodeError, config: TextConfig) -> str:
    bad = error.object[error.start]
    advice = "" if config.tokens == "byte" else ", or use --tokens byte, which accepts any file"
    return (
        f"{name} is not {config.encoding} text: byte 0x{bad:02x} at offset {start + error.start}"
        f" ({error.reason}); specify its --encoding{advice}"
    )


def _encode(text: str, config: TextConfig) -> bytes:
    try:
        return text.encode(config.encoding)
    except UnicodeError as error:
        raise ConfigError(f"{config.encoding} cannot encode the separator {text!r}") from error
    except (LookupError, ValueError) as error:
        raise ConfigError(f"unknown text encoding {config.encoding!r}") from error
