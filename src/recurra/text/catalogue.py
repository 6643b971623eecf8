"""The named corpora: local paths, download addresses and checksums.

A corpus is searched in the directory that `RECURRA_DATA` names, then in the cache. Otherwise it is
downloaded and its SHA-256 is checked. Two texts that were written for this project are part of the
package. The bytes of a corpus are never changed.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import importlib.resources
import io
import logging
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from recurra.errors import ConfigError, CorpusError
from recurra.io.files import cache_folder, replaced

DEFAULT_CORPUS = "english-story"
"""Name of the corpus that is used if no source is specified."""

_TIMEOUT_SECONDS = 30.0
_MAX_DOWNLOAD_BYTES = 64 << 20
_logger = logging.getLogger("recurra")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One entry of the catalogue."""

    name: str
    """Name of the corpus as specified by the user, in lower case with hyphens."""

    file_name: str
    """Name of the file in `RECURRA_DATA`, in the cache or in the package."""

    description: str
    """Description of the text in one line."""

    licence: str
    """Licence or copyright status of the text."""

    url: str | None = None
    """Download address; None for a bundled text."""

    zip_member: str | None = None
    """Name of the text in the archive if the download is a zip file."""

    sha256: str | None = None
    """Checksum of the text itself (not of the archive); None for a bundled text."""

    num_bytes: int | None = None
    """Size of the text itself; None for a bundled text."""

    @property
    def bundled(self) -> bool:
        """Whether the text is part of the package and needs no network."""
        return self.url is None


_ENTRIES = (
    Corpus(
        name=DEFAULT_CORPUS,
        file_name="english.txt",
        description="a story in English, written for recurra",
        licence="the project's own licence",
    ),
    Corpus(
        name="chinese-lyrics",
        file_name="chinese.txt",
        description="song lyrics in Chinese, written for recurra",
        licence="the project's own licence",
    ),
    Corpus(
        name="time-machine",
        file_name="time_machine.txt",
        description="H. G. Wells, The Time Machine, as 'Dive into Deep Learning' uses it",
        licence="public domain",
        url="https://d2l-data.s3-accelerate.amazonaws.com/timemachine.txt",
        sha256="8424dbd9532ac81f7e5f0b6add90e6952baea29158309d7d1bf3884f4e12c516",
        num_bytes=178_979,
    ),
    Corpus(
        name="jaychou-lyrics",
        file_name="jaychou_lyrics.txt",
        description="the Chinese lyrics of 'Dive into Deep Learning', first edition",
        licence="in copyright: for personal study only, not to be passed on",
        url="https://github.com/d2l-ai/d2l-zh/raw/v1.0.0/data/jaychou_lyrics.txt.zip",
        zip_member="jaychou_lyrics.txt",
        sha256="f0cab49f5d00e736c7201a0e2aa9c8dd72da1940c9491b309e4cc657be0faa48",
        num_bytes=171_182,
    ),
    Corpus(
        name="tiny-shakespeare",
        file_name="tiny_shakespeare.txt",
        description="40,000 lines of Shakespeare's plays, as char-rnn and nanoGPT use them",
        licence="public domain",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        num_bytes=1_115_394,
    ),
)
_CATALOGUE = {corpus.name: corpus for corpus in _ENTRIES}


def names() -> list[str]:
    """Return the names of all corpora, bundled texts first."""
    return list(_CATALOGUE)


def nearest(name: str) -> list[str]:
    """Return up to three corpus names similar to `name`, the most similar first.

    The name of a corpus file is treated as the name of its corpus.
    """
    wanted = name.lower().replace("_", "-").removesuffix(".txt")
    return difflib.get_close_matches(wanted, _CATALOGUE, n=3, cutoff=0.5)


def describe(name: str) -> Corpus:
    """Return the entry of a corpus.

    Raises:
        CorpusError: if no corpus has this name.
    """
    if name not in _CATALOGUE:
        raise CorpusError(f"unknown corpus {name!r}; it must be one of {', '.join(_CATALOGUE)}")
    return _CATALOGUE[name]


def locate(name: str) -> Path:
    """Return the path of a corpus, which is downloaded if necessary.

    Raises:
        CorpusError: if no corpus has this name, it cannot be downloaded or stored, or the
            downloaded text does not match its checksum.
    """
    return find(name) or _download(describe(name))


def find(name: str) -> Path | None:
    """Return the path of a corpus if it is on this machine, or None.

    Raises:
        CorpusError: if no corpus has this name, or its file cannot be read.
    """
    corpus = describe(name)
    if corpus.bundled:
        return Path(str(importlib.resources.files("recurra.text") / "originals" / corpus.file_name))
    return _find_in_data_folder(corpus) or _find_in_cache(corpus)


def data_folder() -> Path | None:
    """Return the directory that `RECURRA_DATA` names, or None if it is not set."""
    value = os.environ.get("RECURRA_DATA")
    return Path(value) if value else None


def _find_in_data_folder(corpus: Corpus) -> Path | None:
    directory = data_folder()
    if directory is None or not (path := directory / corpus.file_name).is_file():
        return None
    if not _has_checksum(path, corpus):
        _logger.warning("%s differs from the published %s; it is used anyway", path, corpus.name)
    return path


def _find_in_cache(corpus: Corpus) -> Path | None:
    path = _cached(corpus)
    if not path.is_file():
        return None
    if _has_checksum(path, corpus):
        return path
    _logger.warning("%s is damaged; %s must be downloaded again", path, corpus.name)
    return None


def _cached(corpus: Corpus) -> Path:
    """Return the path of a corpus in the cache, where it need not exist."""
    try:
        return cache_folder() / corpus.file_name
    except ConfigError as error:
        raise CorpusError(f"{corpus.name} is not on this machine, and {error}") from error


def _has_checksum(path: Path, corpus: Corpus) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == corpus.sha256
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error


def _download(corpus: Corpus) -> Path:
    target = _cached(corpus)
    try:
        text = _fetch(corpus)
    except (OSError, http.client.HTTPException, zipfile.BadZipFile, KeyError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # Release the connection.
        raise CorpusError(
            f"cannot download {corpus.name} from {corpus.url} ({error});"
            f" {_manual_steps(corpus, target)}"
        ) from error
    found = hashlib.sha256(text).hexdigest()
    if found != corpus.sha256:
        raise CorpusError(
            f"the file at {corpus.url} is not {corpus.name}: its SHA-256 is {found} instead of"
            f" {corpus.sha256}; {_manual_steps(corpus, target)}"
        )
    try:
        with replaced(target) as temporary:
            temporary.write_bytes(text)
    except OSError as error:
        raise CorpusError(f"cannot write {corpus.name} to {target}: {error.strerror}") from error
    _logger.info("downloaded %s to %s", corpus.name, target)
    return target


def _fetch(corpus: Corpus) -> bytes:
    assert corpus.url is not None
    # Some hosts reject the default User-Agent of urllib.
    request = urllib.request.Request(corpus.url, headers={"User-Agent": "recurra"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        # Limit the memory in case a server sends without end.
        data: bytes = response.read(_MAX_DOWNLOAD_BYTES)
    if corpus.zip_member is None:
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(corpus.zip_member) as member:
        return member.read(_MAX_DOWNLOAD_BYTES)


def _manual_steps(corpus: Corpus, target: Path) -> str:
    directory = data_folder()
    named = str(directory) if directory else "a directory that RECURRA_DATA names"
    return f"copy the file {corpus.file_name} to {named}, or save it as {target}"


def listed(candidates: Iterable[str]) -> str:
    """Return names as an English list: a, b or c."""
    *first, last = candidates
    return f"{', '.join(first)} or {last}" if first else last
