"""The ids of a text on disk: `tokens.bin`, `tokens.json` and `vocabulary.json`.

`tokens.bin` contains only ids: the training part, then the validation part, in the smallest
integer type that is large enough. It is memory-mapped, so a text can be larger than memory. The
files are reused if the settings and the sources are unchanged.
"""

from __future__ import annotations

import dataclasses
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
from recurra.io.files import errors_name_final_path, flush, sha256_of
from recurra.io.json_files import read_json, write_json
from recurra.text.bpe import BpeVocabulary
from recurra.text.corpus import byte_chunks, resolve_sources, text_chunks
from recurra.text.sources import RawSource, SourceReader, TextSource, digest_of, source_names
from recurra.text.vocabularies import vocabulary_from_dict
from recurra.text.vocabulary import SymbolVocabulary, Vocabulary

FORMAT_VERSION = 1
_TOKENS, _RECORD, _VOCABULARY = "tokens.bin", "tokens.json", "vocabulary.json"
_EXTENT = tuple(field.name for field in dataclasses.fields(Extent))
# (part, whole): a character has at least one byte, so no text has more characters than bytes.
_PARTS = (
    ("num_chars", "num_bytes"),
    ("val_chars", "num_chars"),
    ("val_chars", "val_bytes"),
    ("val_bytes", "num_bytes"),
)


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """The token ids of a text, stored on disk."""

    path: Path
    """Path of `tokens.bin`."""

    dtype: np.dtype[Any]
    """Type of the ids: uint8, uint16 or uint32, little-endian."""

    num_tokens: int
    """Number of tokens of both parts."""

    num_train: int
    """Number of tokens of the training part: (1 - val_fraction) of all tokens, rounded down. With
    bpe the fraction applies to the characters."""

    num_chars: int
    """Number of characters of the prepared text, up to the last token."""

    num_bytes: int
    """Number of UTF-8 bytes of the prepared text, up to the last token."""

    val_chars: int
    """Number of characters of the validation part."""

    val_bytes: int
    """Number of UTF-8 bytes of the validation part."""

    sources: tuple[str, ...]
    """Sources of the text, as specified by the user."""

    sha256: str
    """SHA-256 of the raw bytes that were read. For a single file read to its end, this is the
    SHA-256 of the file."""

    tokens_sha256: str
    """SHA-256 of `tokens.bin`."""

    vocabulary_fingerprint: str
    """Fingerprint of the vocabulary of the ids."""

    @cached_property
    def ids(self) -> npt.NDArray[Any]:
        """All ids, (num_tokens,), as a read-only memory map."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.num_tokens,))

    @property
    def train(self) -> npt.NDArray[Any]:
        """The ids of the training part, (num_train,), as a view."""
        return self.ids[: self.num_train]

    @property
    def val(self) -> npt.NDArray[Any]:
        """The ids of the validation part, (num_tokens - num_train,), as a view. Can be empty."""
        return self.ids[self.num_train :]

    def verify(self) -> None:
        """Compare the SHA-256 of `tokens.bin` with the recorded one.

        Raises:
            RunError: if they differ.
        """
        digest = sha256_of(self.path)
        if digest != self.tokens_sha256:
            raise RunError(
                f"{self.path} has changed: its SHA-256 is {digest}, but was {self.tokens_sha256}"
            )

    def check_ids(self, vocab_size: int) -> None:
        """Check that every id is below `vocab_size`.

        Raises:
            RunError: if an id is not.
        """
        for start in range(0, self.num_tokens, CHUNK_IDS):
            largest = int(self.ids[start : start + CHUNK_IDS].max())
            if largest >= vocab_size:
                raise RunError(
                    f"{self.path} is damaged: it has the id {largest}, but the largest id of the"
                    f" vocabulary is {vocab_size - 1}"
                )


def build_token_file(
    sources: Sequence[TextSource],
    config: TextConfig,
    directory: Path,
    base: Vocabulary | None = None,
) -> tuple[TokenFile, Vocabulary]:
    """Read the sources once, build the vocabulary from the training part and write the ids.

    Without a base, the files of an earlier call are reused if they are intact and were made with
    the same settings from the same bytes. Standard input is always read again. If an error occurs,
    no incomplete file is left in the directory.

    Args:
        sources: the text.
        config: how the text is read, tokenized and split.
        directory: the directory to write to.
        base: a vocabulary of the same kind, to which `config.new_tokens` may add tokens; by
            default, the vocabulary contains only the tokens of the text.

    Raises:
        ConfigError: if `encoding`, `vocab_size` or `min_freq` is invalid for these sources.
        SourceError: if a source cannot be read, is not text in this encoding, or is too short.
        CorpusError: if a named corpus is not on this machine and cannot be downloaded.
        MissingExtraError: if `tokens` is "bpe" and tokenizers is not installed.
        OSError: if the directory cannot be written to, or the disk is full.
    """
    streams = resolve_sources(sources, config)
    if base is None and (cached := _load_cached(streams, config, directory)):
        return cached
    reader = SourceReader(streams)
    with _workspace(directory) as work:
        vocabulary, extent = _index(reader, config, work, base)
        record = {
            "version": FORMAT_VERSION,
            "dtype": smallest_dtype(len(vocabulary)).name,
            **dataclasses.asdict(extent),
            "text": dataclasses.asdict(config),
            "sources": source_names(sources),
            "sha256": reader.sha256,
            "source_bytes": reader.num_bytes,
            "source_complete": reader.complete,
            "tokens_sha256": sha256_of(work / _TOKENS),
            "vocabulary": vocabulary.fingerprint,
        }
        _write_vocabulary(vocabulary, work / _VOCABULARY)
        write_json(work / _RECORD, record)
        _publish(work, directory)
    return load_token_file(directory), vocabulary


def load_token_file(directory: Path) -> TokenFile:
    """Return the token file that `build_token_file` wrote to a directory.

    Raises:
        RunError: if it is missing or damaged, or its format version is not supported.
    """
    record = read_json(directory / _RECORD)
    if record.get("version") != FORMAT_VERSION:
        raise RunError(
            f"{directory / _RECORD} has format {shortened(record.get('version'))}, but this"
            f" version of recurra reads only format {FORMAT_VERSION}"
        )
    _check_record(record, directory / _RECORD)
    tokens = TokenFile(
        path=directory / _TOKENS,
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
    """Check that `build_token_file` could have written a record.

    Raises:
        RunError: if a field is missing or invalid. The message names the field.
    """

    def require(name: str, holds: bool) -> None:
        if not holds:
            raise RunError(f"{file} is damaged: {name} is {shortened(record.get(name))}")

    # Do not pass other names to numpy: some of its types are not numeric, such as object.
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


def load_vocabulary(directory: Path) -> Vocabulary:
    """Return the vocabulary that is stored in `vocabulary.json` of a directory.

    Raises:
        RunError: if it is missing or damaged.
        MissingExtraError: if it is a BPE vocabulary and tokenizers is not installed.
    """
    path = directory / _VOCABULARY
    try:
        return vocabulary_from_dict(read_json(path))
    except ConfigError as error:
        raise RunError(f"{path} is damaged: {error}") from error


def _write_vocabulary(vocabulary: Vocabulary, file: Path) -> None:
    """Write a vocabulary and check that it can be read again.

    Raises:
        SourceError: if it is too large.
    """
    write_json(file, vocabulary.to_dict())
    try:
        read_json(file)
    except RunError as error:
        raise SourceError(
            f"the vocabulary is too large to be saved: {len(vocabulary):,} tokens; omit rare tokens"
            " with a smaller --vocab-size or a larger --min-freq"
        ) from error


def _index(
    reader: SourceReader, config: TextConfig, work: Path, base: Vocabulary | None
) -> tuple[Vocabulary, Extent]:
    target = work / _TOKENS
    if config.tokens == "byte":
        return index_bytes(byte_chunks(reader, config), config, target)
    chunks = text_chunks(reader, config)
    if config.tokens == "bpe":
        assert base is None or isinstance(base, BpeVocabulary)
        return index_bpe(chunks, config, target, work, base)
    assert base is None or isinstance(base, SymbolVocabulary)
    return index_symbols(chunks, config, target, work, base)


def _load_cached(
    streams: Sequence[RawSource], config: TextConfig, directory: Path
) -> tuple[TokenFile, Vocabulary] | None:
    """Return the cached token file if it is intact and matches the sources and settings."""
    if not all(stream.rereadable for stream in streams) or not (directory / _RECORD).is_file():
        return None
    try:
        tokens, vocabulary, record = (
            load_token_file(directory),
            load_vocabulary(directory),
            read_json(directory / _RECORD),
        )
    except RunError:
        return None  # Damaged files are built again.
    is_same = (
        vocabulary.fingerprint == tokens.vocabulary_fingerprint
        and record.get("text") == dataclasses.asdict(config)
        and _has_same_bytes(streams, record)
    )
    return (tokens, vocabulary) if is_same else None


def source_change(directory: Path) -> str | None:
    """Describe how the sources have changed since the token file of a directory was built.

    Returns None if they are unchanged. It also returns None if they cannot be compared: standard
    input, files that no longer exist, and corpora that would have to be downloaded.

    Raises:
        RunError: if the token file is missing or damaged.
    """
    tokens, record = load_token_file(directory), read_json(directory / _RECORD)
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
    return f"{names} has changed: its SHA-256 is {digest}, but was {tokens.sha256}"


def _has_same_bytes(streams: Sequence[RawSource], record: dict[str, Any]) -> bool:
    """Return whether the part of the sources that was read before still has the same digest."""
    return digest_of(streams, _digest_limit(record)) == str(record["sha256"])


def _digest_limit(record: dict[str, Any]) -> int:
    """Return the number of source bytes to compare.

    This is the number of bytes that were read before. If the sources were read to their end, it is
    one more, so that appended bytes are detected.
    """
    return int(record["source_bytes"]) + int(record["source_complete"])


@contextmanager
def _workspace(directory: Path) -> Iterator[Path]:
    """Provide a temporary directory inside `directory` and remove it afterwards.

    If the block fails, `directory` is removed too if it was created here and is empty.
    """
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with (
            tempfile.TemporaryDirectory(dir=directory, prefix=".tokens-") as work,
            errors_name_final_path(Path(work), directory),
        ):
            yield Path(work)
    except BaseException:
        if made:
            with suppress(OSError):  # Another process may have written to it meanwhile.
                directory.rmdir()
        raise


def _publish(work: Path, directory: Path) -> None:
    """Move the finished files to their final names.

    The old record is removed first and the new one is written last. A record on disk therefore
    always belongs to the ids beside it, even after a power failure.
    """
    for name in (_TOKENS, _VOCABULARY, _RECORD):
        flush(work / name)
    (directory / _RECORD).unlink(missing_ok=True)
    for name in (_TOKENS, _VOCABULARY, _RECORD):
        (work / name).replace(directory / name)
    flush(directory)
