"""Prepare text: decoding, newline conversion and the book's letters-only cleaning.

Everything works on a stream in chunks of about 1 MB, and what comes out does not depend on where
the chunks were cut. Knows no vocabulary and no ids.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from recurra.config import TextConfig
from recurra.errors import ConfigError, SourceError
from recurra.text.sources import RawSource, SourceReader, resolve

_BYTE_ORDER_MARK = "\ufeff"


def prepare_text(text: str, config: TextConfig) -> str:
    """One string under the rules that a source's text went through: newlines, letters only."""
    if config.tokens == "byte":
        return text
    if config.newlines == "unify":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return LettersOnly().push(text) if config.letters_only else text


def read_text(sources: Sequence[str | Path], config: TextConfig) -> str:
    """The whole prepared text of sources that fit into memory; raises as `iterate_text` does."""
    return "".join(iterate_text(sources, config))


def read_bytes(sources: Sequence[str | Path], config: TextConfig) -> bytes:
    """The whole of the sources as bytes, for byte tokens; raises as `iterate_bytes` does."""
    return b"".join(iterate_bytes(sources, config))


def iterate_text(sources: Sequence[str | Path], config: TextConfig) -> Iterator[str]:
    """The prepared text of the sources in chunks, none of them empty.

    Several files are joined by `config.separator`; every file's byte order mark is removed. With
    byte tokens the text is decoded and otherwise left as it is.

    Raises:
        ConfigError: the encoding is unknown.
        SourceError: a source is missing, unreadable, empty, not in this encoding (with the byte's
            offset in the file), or has nothing left after cleaning.
        CorpusError: a named corpus is neither here nor to be fetched.
    """
    return text_chunks(SourceReader(resolve_sources(sources, config)), config)


def iterate_bytes(sources: Sequence[str | Path], config: TextConfig) -> Iterator[bytes]:
    """The sources' bytes in chunks, unchanged; `config.separator` stands encoded between files.

    Raises:
        ConfigError: the encoding is unknown or cannot write the separator.
        SourceError, CorpusError: as `iterate_text`.
    """
    return byte_chunks(SourceReader(resolve_sources(sources, config)), config)


def resolve_sources(sources: Sequence[str | Path], config: TextConfig) -> list[RawSource]:
    """The raw streams behind the names, after a look at the encoding's name."""
    return resolve(sources, nul_is_text=b"\0" in _encode("\n", config))


def text_chunks(reader: SourceReader, config: TextConfig) -> Iterator[str]:
    """What `iterate_text` yields, from a reader that keeps account of the raw bytes."""
    letters = LettersOnly() if config.letters_only else None
    empty = True
    for text in _joined(reader, config):
        if prepared := letters.push(text) if letters else text:
            empty = False
            yield prepared
    if empty:
        rest = " that letters-only keeps" if letters else ""
        raise SourceError(f"the text is empty: there is no character in it{rest}")


def byte_chunks(reader: SourceReader, config: TextConfig) -> Iterator[bytes]:
    """What `iterate_bytes` yields, from a reader that keeps account of the raw bytes."""
    separator = _encode(config.separator, config)
    for position, (_, chunks) in enumerate(reader.files()):
        if position > 0 and separator:
            yield separator
        yield from chunks


class LettersOnly:
    """The cleaning of 'Dive into Deep Learning', section 9.2, on a stream.

    In every line each run of characters outside A-Z and a-z becomes one space, the line is
    stripped and lower-cased, and lines are joined without a separator. Seen from the letters: a
    gap between two of them becomes nothing if a line ends in it, else one space; the gaps before
    the first letter and after the last become nothing.
    """

    # Letters in lower case, line ends as they are, a space for every other byte.
    _TABLE = re.sub(rb"[^a-z\n]", b" ", bytes(range(256)).lower())

    def __init__(self) -> None:
        # The gap at the end of what was read, as far as it matters: nothing, a space, a line end.
        self._gap = b"\n"

    def push(self, text: str) -> str:
        """Clean the next part of the stream; a gap at its end is held back."""
        data = self._gap + text.encode("ascii", "replace").translate(self._TABLE)
        data = re.sub(rb" {2,}", b" ", data).replace(b" \n", b"\n").replace(b"\n ", b"\n")
        body = data.rstrip(b" \n")
        gap = data[len(body) :]
        self._gap = b"\n" if b"\n" in gap else gap[:1]
        return body.replace(b"\n", b"").decode("ascii")


def _joined(reader: SourceReader, config: TextConfig) -> Iterator[str]:
    for position, (name, chunks) in enumerate(reader.files()):
        if position > 0:
            yield config.separator
        yield from _decoded(name, chunks, config)


def _decoded(name: str, chunks: Iterator[bytes], config: TextConfig) -> Iterator[str]:
    """Yield the text of a file; the configuration decides on newlines and the byte order mark."""
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
    """(text, whether it is the last) of each chunk of one file."""
    decoder = codecs.getincrementaldecoder(config.encoding)()
    offset = 0  # where in the file the decoder's next input begins
    for chunk, final in _with_end(chunks):
        # Bytes of a character begun in the chunk before: the decoder counts errors from there.
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final)
            text.encode()  # a few exotic codecs let lone surrogates through
        except UnicodeDecodeError as error:
            raise SourceError(_undecodable(name, offset - held, error, config)) from error
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
    advice = "" if config.tokens == "byte" else ", or --tokens byte, which reads any file"
    return (
        f"{name} is not {config.encoding} text: byte 0x{bad:02x} at offset {start + error.start}"
        f" ({error.reason}); give its --encoding{advice}"
    )


def _encode(text: str, config: TextConfig) -> bytes:
    try:
        return text.encode(config.encoding)
    except UnicodeError as error:
        raise ConfigError(f"{config.encoding} cannot write the separator {text!r}") from error
    except (LookupError, ValueError) as error:
        raise ConfigError(f"unknown text encoding {config.encoding!r}") from error
