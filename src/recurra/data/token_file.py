"""The ids of a text on disk: `tokens.bin`, `tokens.json` and `vocabulary.json`.

`tokens.bin` holds nothing but ids, the training part first and the validation part after it, in
the smallest integer type that fits; it is memory-mapped, so a text may be larger than memory. A
folder is used again only if settings and source are still the same. Knows no batches.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
import numpy.typing as npt

from recurra.config import TextConfig
from recurra.data.indexing import Extent, index_bpe, index_bytes, index_symbols
from recurra.data.provisional import CHUNK_IDS, smallest_dtype
from recurra.errors import ConfigError, RunError, SourceError
from recurra.io.files import flush, opened_regular, read_json, write_json
from recurra.text.corpus import byte_chunks, resolve_sources, text_chunks
from recurra.text.sources import RawSource, SourceReader, digest_of, source_names
from recurra.text.vocabularies import vocabulary_from_dict
from recurra.text.vocabulary import Vocabulary

FORMAT_VERSION = 1
_TOKENS, _RECORD, _VOCABULARY = "tokens.bin", "tokens.json", "vocabulary.json"
_EXTENT = tuple(field.name for field in dataclasses.fields(Extent))
# Every character has one byte at least; of bytes, not every one begins a character.
_PARTS = (
    ("num_chars", "num_bytes"),
    ("val_chars", "num_chars"),
    ("val_chars", "val_bytes"),
    ("val_bytes", "num_bytes"),
)


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """A text as ids, on disk."""

    path: Path
    """The file of ids."""

    dtype: np.dtype[Any]
    """uint8, uint16 or uint32, little-endian."""

    num_tokens: int
    """All tokens."""

    num_train: int
    """Tokens of the training part: the first (1 - val_fraction) of all, rounded down (bpe: the
    tokens of that share of the characters)."""

    num_chars: int
    """Characters of the prepared text that the tokens cover."""

    num_bytes: int
    """The same in bytes of UTF-8."""

    val_chars: int
    """Characters of the validation part."""

    val_bytes: int
    """Bytes of the validation part."""

    sources: tuple[str, ...]
    """What the text was made from, as the person named it."""

    sha256: str
    """Of the raw bytes that were read: of a single file, the file's own."""

    tokens_sha256: str
    """Of the file of ids itself, as it was written."""

    vocabulary_fingerprint: str
    """Of the vocabulary that the ids belong to."""

    @cached_property
    def ids(self) -> npt.NDArray[Any]:
        """All ids, (num_tokens,), a read-only memory map."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.num_tokens,))

    @property
    def train(self) -> npt.NDArray[Any]:
        """The training part, (num_train,), a view."""
        return self.ids[: self.num_train]

    @property
    def val(self) -> npt.NDArray[Any]:
        """The validation part, (num_tokens - num_train,), a view; it may be empty."""
        return self.ids[self.num_train :]

    def verify(self) -> None:
        """Hold the file of ids against what was written.

        Raises:
            RunError: its bytes are others.
        """
        digest = _digest(self.path)
        if digest != self.tokens_sha256:
            raise RunError(
                f"{self.path} has changed: its SHA-256 is {digest}, and was {self.tokens_sha256}"
            )

    def check_ids(self, vocab_size: int) -> None:
        """See to it that every id is one of a vocabulary of this size.

        Raises:
            RunError: one is not.
        """
        for start in range(0, self.num_tokens, CHUNK_IDS):
            largest = int(self.ids[start : start + CHUNK_IDS].max())
            if largest >= vocab_size:
                raise RunError(
                    f"{self.path} is damaged: it has the id {largest}, and the vocabulary ends at"
                    f" {vocab_size - 1}"
                )


def build_token_file(
    sources: Sequence[str | Path], config: TextConfig, folder: Path
) -> tuple[TokenFile, Vocabulary]:
    """Read the sources once, learn the vocabulary from the training part, write the ids.

    Files of an earlier call are used again when they are whole, and settings and raw bytes are
    the same; standard input is never the same. Nothing half-written stays behind an error.

    Raises:
        ConfigError: encoding, vocab_size or min_freq do not suit.
        SourceError: a source cannot be read, is not text in this encoding, or is too short.
        CorpusError: a named corpus is neither here nor to be fetched.
        MissingExtraError: bpe without tokenizers.
        OSError: the folder cannot be written, or the disk is full.
    """
    streams = resolve_sources(sources, config)
    if built := _built_before(streams, config, folder):
        return built
    reader = SourceReader(streams)
    with _workspace(folder) as work:
        vocabulary, extent = _index(reader, config, work)
        record = {
            "version": FORMAT_VERSION,
            "dtype": smallest_dtype(len(vocabulary)).name,
            **dataclasses.asdict(extent),
            "text": dataclasses.asdict(config),
            "sources": source_names(sources),
            "sha256": reader.sha256,
            "source_bytes": reader.num_bytes,
            "source_complete": reader.complete,
            "tokens_sha256": _digest(work / _TOKENS),
            "vocabulary": vocabulary.fingerprint,
        }
        _write_vocabulary(vocabulary, work / _VOCABULARY)
        write_json(work / _RECORD, record)
        _publish(work, folder)
    return load_token_file(folder), vocabulary


def load_token_file(folder: Path) -> TokenFile:
    """The token file that `build_token_file` left in a folder.

    Raises:
        RunError: it is missing, damaged, or of another version of the format.
    """
    record = read_json(folder / _RECORD)
    if record.get("version") != FORMAT_VERSION:
        raise RunError(
            f"{folder / _RECORD} has format {shortened(record.get('version'))}, and this version of"
            f" recurra reads {FORMAT_VERSION}"
        )
    _check_record(record, folder / _RECORD)
    tokens = TokenFile(
        path=folder / _TOKENS,
        dtype=np.dtype(record["dtype"]).newbyteorder("<"),
        **{name: record[name] for name in _EXTENT},
        sources=tuple(record["sources"]),
        sha256=record["sha256"],
        tokens_sha256=record["tokens_sha256"],
        vocabulary_fingerprint=record["vocabulary"],
    )
    expected = tokens.num_tokens * tokens.dtype.itemsize
    found = tokens.path.stat().st_size if tokens.path.is_file() else 0
    if found != expected:
        raise RunError(f"{tokens.path} is damaged: it has {found} bytes instead of {expected}")
    return tokens


def _check_record(record: dict[str, Any], file: Path) -> None:
    """Refuse what no call of `build_token_file` wrote.

    Raises:
        RunError: names the field.
    """

    def require(name: str, holds: bool) -> None:
        if not holds:
            raise RunError(f"{file} is damaged: {name} is {shortened(record.get(name))}")

    # numpy knows types that are not numbers, objects among them.
    require("dtype", record.get("dtype") in ("uint8", "uint16", "uint32"))
    for name in _EXTENT:
        value = record.get(name)
        require(name, type(value) is int and 0 <= value < 2**62)
    require("num_train", 1 <= record["num_train"] <= record["num_tokens"])
    for part, whole in _PARTS:
        require(part, record[part] <= record[whole])
    sources = record.get("sources")
    is_list = isinstance(sources, list) and all(isinstance(name, str) for name in sources)
    require("sources", is_list)
    for name in ("sha256", "tokens_sha256", "vocabulary"):
        require(name, re.fullmatch("[0-9a-f]{64}", str(record.get(name))) is not None)
    text = record.get("text")
    require("text", isinstance(text, dict) and isinstance(text.get("encoding"), str))
    source_bytes = record.get("source_bytes")
    require("source_bytes", type(source_bytes) is int and source_bytes >= 0)
    require("source_complete", isinstance(record.get("source_complete"), bool))


def load_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a folder, from its `vocabulary.json`.

    Raises:
        RunError: it is missing or damaged.
        MissingExtraError: bpe without tokenizers.
    """
    path = folder / _VOCABULARY
    try:
        return vocabulary_from_dict(read_json(path))
    except ConfigError as error:
        raise RunError(f"{path} is damaged: {error}") from error


def _write_vocabulary(vocabulary: Vocabulary, file: Path) -> None:
    """Write a vocabulary, and see to it that it is one which can be read again.

    Raises:
        SourceError: it is too large.
    """
    write_json(file, vocabulary.to_dict())
    try:
        read_json(file)
    except RunError as error:
        raise SourceError(
            f"the vocabulary is too large to be saved: {len(vocabulary):,} tokens; a smaller"
            " --vocab-size or a larger --min-freq leaves out the rare ones"
        ) from error


def _index(reader: SourceReader, config: TextConfig, work: Path) -> tuple[Vocabulary, Extent]:
    target = work / _TOKENS
    if config.tokens == "byte":
        return index_bytes(byte_chunks(reader, config), config, target)
    chunks = text_chunks(reader, config)
    if config.tokens == "bpe":
        return index_bpe(chunks, config, target, work)
    return index_symbols(chunks, config, target, work)


def _built_before(
    streams: Sequence[RawSource], config: TextConfig, folder: Path
) -> tuple[TokenFile, Vocabulary] | None:
    """Return the cached token file if it is intact and matches the sources and settings."""
    if not all(stream.rereadable for stream in streams) or not (folder / _RECORD).is_file():
        return None
    try:
        tokens, vocabulary, record = (
            load_token_file(folder),
            load_vocabulary(folder),
            read_json(folder / _RECORD),
        )
    except RunError:
        return None  # damaged: it is built again
    same = (
        vocabulary.fingerprint == tokens.vocabulary_fingerprint
        and record.get("text") == dataclasses.asdict(config)
        and _same_bytes(streams, record)
    )
    return (tokens, vocabulary) if same else None


def source_change(folder: Path) -> str | None:
    """Describe how the sources of a directory differ from what was read.

    None when they are the same, and where that cannot be told: of standard input, of files that
    are gone, of corpora that would have to be fetched.

    Raises:
        RunError: the folder's record is missing or damaged.
    """
    tokens, record = load_token_file(folder), read_json(folder / _RECORD)
    config = TextConfig(encoding=str(record["text"]["encoding"]))
    if not all(os.path.exists(name) for name in tokens.sources):
        return None
    try:
        streams = resolve_sources(tokens.sources, config)
        if not all(stream.rereadable for stream in streams):
            return None
        digest = digest_of(streams, _digest_limit(record))
    except (SourceError, ConfigError) as error:
        return f"the source can no longer be read: {error}"
    if digest == tokens.sha256:
        return None
    names = ", ".join(tokens.sources)
    return f"{names} has changed: its SHA-256 is {digest}, and was {tokens.sha256}"


def _digest(file: Path) -> str:
    with opened_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _same_bytes(streams: Sequence[RawSource], record: dict[str, Any]) -> bool:
    """Whether the part of the sources that was read then has the same digest now."""
    return digest_of(streams, _digest_limit(record)) == str(record["sha256"])


def _digest_limit(record: dict[str, Any]) -> int:
    """How much of the sources decides whether they are the same: what was read then, and, where
    that was all, one byte more, which must not be there."""
    return int(record["source_bytes"]) + int(record["source_complete"])


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """A folder for unfinished files inside `folder`; it goes in any case, with all in it."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tokens-") as work:
            yield Path(work)
    except BaseException:
        if made:
            with suppress(OSError):  # someone else put something into it meanwhile
                folder.rmdir()
        raise


def _publish(work: Path, folder: Path) -> None:
    """Move the finished files to their names; the record goes first and comes last.

    So a record on disk always belongs to the ids beside it, wherever a power cut falls.
    """
    for name in (_TOKENS, _VOCABULARY, _RECORD):
        flush(work / name)
    (folder / _RECORD).unlink(missing_ok=True)
    for name in (_TOKENS, _VOCABULARY, _RECORD):
        (work / name).replace(folder / name)
    flush(folder)
