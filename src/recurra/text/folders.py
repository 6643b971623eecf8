"""Find the text files below a directory, and say why other files are skipped."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from recurra.errors import SourceError

COMPARISON_FILES = ("comparison.json", "results.json", "comparison.svg")
"""Files that a comparison writes beside its runs, the first one at its start. They are skipped."""
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class FolderScan:
    """The files below a directory.

    Attributes:
        folder: the directory.
        files: the text files, sorted by path.
        skipped: the paths that are not read, and the reasons. A skipped directory is one path.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)


def scan_folder(folder: Path, encoding: str | None, *, nul_is_text: bool) -> FolderScan:
    """Return the text files below a directory.

    Hidden and empty files, runs, and files that are not text are skipped. A file is text if its
    first 64 KB are valid in the encoding and contain no NUL byte.

    Args:
        folder: the directory.
        encoding: the encoding of the files; None accepts any bytes.
        nul_is_text: whether text can contain NUL bytes, as in UTF-16 and UTF-32.

    Raises:
        SourceError: a file or a directory cannot be read.
    """
    scan = FolderScan(folder)
    for path in sorted(_visible_files(scan), key=lambda path: path.parts):
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD_BYTES)
        except OSError as error:
            raise SourceError(f"cannot read {path}: {error.strerror}") from error
        reason = _not_text(head, encoding, nul_is_text=nul_is_text)
        if reason is None:
            scan.files.append(path)
        else:
            scan.skipped[path] = reason
    return scan


def _not_text(head: bytes, encoding: str | None, *, nul_is_text: bool) -> str | None:
    """Return why a file that begins with these bytes is not text, or None if it is."""
    if not head:
        return "empty"
    if b"\0" in head and not nul_is_text:
        return "contains NUL bytes"
    if encoding is None:
        return None
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        decoder.decode(head, final=len(head) < _HEAD_BYTES)
    except UnicodeDecodeError as error:
        return f"not {encoding}: byte 0x{error.object[error.start]:02x} at offset {error.start}"
    except UnicodeError as error:
        return f"not {encoding}: {error}"
    return None


def _visible_files(scan: FolderScan) -> Iterator[Path]:
    """Yield the files that are candidates, and note the others in the scan."""

    def raise_source_error(error: OSError) -> None:
        raise SourceError(f"cannot read {error.filename}: {error.strerror}") from error

    for parent, directories, files in os.walk(scan.folder, onerror=raise_source_error):
        if "tokens.bin" in files and "config.json" in files:
            scan.skipped[Path(parent)] = "a run directory"
            directories.clear()
            continue
        for name in [name for name in (*directories, *files) if name.startswith(".")]:
            scan.skipped[Path(parent, name)] = "hidden"
        for name in directories:
            if not name.startswith(".") and Path(parent, name).is_symlink():
                scan.skipped[Path(parent, name)] = "a symbolic link to a directory"
        # os.walk descends only into the directories that remain in the list.
        directories[:] = [name for name in directories if not name.startswith(".")]
        generated = COMPARISON_FILES if COMPARISON_FILES[0] in files else ()
        for name in files:
            path = Path(parent, name)
            if name in generated:
                scan.skipped[path] = "a file of a comparison"
            elif not name.startswith("."):
                if path.is_file():
                    yield path
                else:
                    scan.skipped[path] = "not a regular file"
