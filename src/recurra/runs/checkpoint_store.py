"""The checkpoint directories of a run: atomic writes, verification, removal.

    checkpoints/step-00000420/
        ...                  the files of this moment of the training; see checkpoint.py
        manifest.sha256      their digests, as `sha256sum -c` reads them; written last

A checkpoint is written beside its place, flushed, moved there, read back from the disk and held
against its manifest; only then is an older one removed. Knows names, bytes and digests; what is
in the files is defined in `checkpoint.py`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from recurra.errors import RunError
from recurra.io.files import UNFINISHED, flush, remove_unfinished, write_bytes

MANIFEST = "manifest.sha256"
_NAME = re.compile(r"step-(\d{8,})(-final)?")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Cost:
    """The cost of a checkpoint: bytes on disk, and seconds until it was verified."""

    num_bytes: int
    seconds: float


def name_of(step: int, *, final: bool = False) -> str:
    """The folder's name of the checkpoint after `step` updates; `final` marks a finished run."""
    return f"step-{step:08}" + ("-final" if final else "")


def is_name(name: str) -> bool:
    """Whether a checkpoint's folder may be called this."""
    return _NAME.fullmatch(name) is not None


def step_of(name: str) -> int:
    """After how many updates a checkpoint of this name was made."""
    found = _NAME.fullmatch(name)
    assert found is not None
    return int(found[1])


class CheckpointStore:
    """The checkpoints below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """All that are in their place, whole or damaged, the oldest first."""
        if not self.folder.is_dir():
            return []
        found = [p.name for p in self.folder.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
        return sorted(found, key=lambda name: (step_of(name), name))

    def write(self, name: str, files: Mapping[str, bytes]) -> Cost:
        """Make a checkpoint of these files, and know that it can be read.

        Raises:
            OSError: the disk is full, or fails; the other checkpoints are as they were.
            RunError: what was read back is not what was written.
        """
        started = time.perf_counter()
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
        place = self.folder / name
        fresh, aside = (self.folder / f".{name}.{kind}{UNFINISHED}" for kind in ("new", "old"))
        try:
            _write_folder(fresh, files)
            if place.exists():
                # One of the same moment: it was written before a report, or is damaged.
                os.rename(place, aside)
            try:
                os.rename(fresh, place)
                flush(self.folder)
                self.verify(name)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                if aside.exists():
                    os.rename(aside, place)
                raise
        finally:
            # What cannot be removed now goes at the next start.
            shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
        return Cost(sum(map(len, files.values())), time.perf_counter() - started)

    def verify(self, name: str) -> None:
        """Hold the files on the disk against their manifest.

        Raises:
            RunError: one is missing, too many, or has other bytes.
        """
        place = self.folder / name
        manifest = place / MANIFEST
        try:
            names = sorted(p.name for p in place.iterdir() if p.name != MANIFEST)
            digests = {file: _digest(place / file) for file in names}
            _refuse_special(manifest)
            found = manifest.read_bytes()
        except OSError as error:
            raise RunError(f"{error.filename or place} cannot be read: {error.strerror}") from error
        for file, digest in digests.items():
            if _line(file, digest) not in found.splitlines(keepends=True):
                raise RunError(f"{place / file} is damaged: its SHA-256 is not that of {MANIFEST}")
        if found != _manifest(digests):
            raise RunError(f"{manifest} is damaged, or a file that it names is missing")

    def keep_only(self, names: Collection[str]) -> None:
        """Remove all checkpoints but these."""
        for name in self.names():
            if name not in names:
                shutil.rmtree(self.folder / name)

    def remove_unfinished(self) -> None:
        """Remove what a killed process left; a checkpoint that was moved aside comes back."""
        for aside in self.folder.glob(f".step-*.old{UNFINISHED}"):
            place = self.folder / aside.name[1 : -len(f".old{UNFINISHED}")]
            if not place.exists():
                os.rename(aside, place)
        remove_unfinished(self.folder)


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file, data in files.items():
        write_bytes(folder / file, data)
        flush(folder / file)
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    write_bytes(folder / MANIFEST, _manifest(digests))
    flush(folder / MANIFEST)
    flush(folder)


def _manifest(digests: Mapping[str, str]) -> bytes:
    return b"".join(_line(file, digests[file]) for file in sorted(digests))


def _line(file: str, digest: str) -> bytes:
    return f"{digest}  {file}\n".encode("utf-8", "surrogateescape")


def _digest(file: Path) -> str:
    """The SHA-256 of a file, read from the disk where the system can be asked to."""
    _refuse_special(file)
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if hasattr(os, "posix_fadvise"):
            # Flushed pages are dropped, so that what is read is what the disk has.
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _refuse_special(file: Path) -> None:
    """A pipe would be waited on for ever."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise RunError(f"{file} is not a file")
