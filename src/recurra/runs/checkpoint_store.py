"""The checkpoint directories of a run: atomic writes, verification, removal.

    checkpoints/step-00000420/
        ...                  the files of the checkpoint; see checkpoint.py
        manifest.sha256      their SHA-256 digests in the format of `sha256sum`; written last

A checkpoint is written to a temporary directory, flushed and renamed. It is then read back from the
disk and compared with its manifest. An older checkpoint is removed only after that. The contents of
the files are defined in `checkpoint.py`.
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
from recurra.io.files import (
    UNFINISHED,
    errors_name_final_path,
    flush,
    remove_unfinished,
    write_bytes,
)
from recurra.io.tensors import Tensors, TensorSpec, read_tensor_file
from recurra.runs.checkpoint import STATE, CheckpointRecord

MANIFEST = "manifest.sha256"
_NAME = re.compile(r"step-(\d{8,})(-final)?")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Cost:
    """Cost of a checkpoint: bytes on disk, and seconds to write and verify it."""

    num_bytes: int
    seconds: float


def name_of(step: int, *, final: bool = False) -> str:
    """Return the directory name of the checkpoint after `step` updates.

    `final` marks the last checkpoint of a finished run.
    """
    return f"step-{step:08}" + ("-final" if final else "")


def is_name(name: str) -> bool:
    """Return whether a name is a valid directory name of a checkpoint."""
    return _NAME.fullmatch(name) is not None


def step_of(name: str) -> int:
    """Return the number of updates before the checkpoint with this directory name."""
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match[1])


class CheckpointStore:
    """The checkpoints in a directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_of(self, name: str) -> Path:
        """Return the path of a checkpoint."""
        return self.folder / name

    def names(self) -> list[str]:
        """Return the names of all checkpoints, including damaged ones, the oldest first."""
        if not self.folder.is_dir():
            return []
        found = [p.name for p in self.folder.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
        return sorted(found, key=lambda name: (step_of(name), name))

    def write(self, name: str, files: Mapping[str, bytes]) -> Cost:
        """Write a checkpoint and verify it by reading it back.

        Args:
            name: the directory name of the checkpoint; see `name_of`.
            files: the contents of the files, by file name.

        Raises:
            OSError: if the disk is full or fails. Existing checkpoints are unchanged.
            RunError: if the files that were read back differ. Existing checkpoints are unchanged.
        """
        started = time.perf_counter()
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
        place = self.folder / name
        staging, aside = (self.folder / f".{name}.{kind}{UNFINISHED}" for kind in ("new", "old"))
        try:
            with errors_name_final_path(staging, place):
                _write_directory(staging, files)
            if place.exists():
                # The step has a checkpoint that was written before its evaluation or is damaged.
                os.rename(place, aside)
            try:
                os.rename(staging, place)
                flush(self.folder)
                self.verify(name)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                if aside.exists():
                    os.rename(aside, place)
                raise
        finally:
            # `remove_unfinished` retries what cannot be removed here.
            shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
        return Cost(sum(map(len, files.values())), time.perf_counter() - started)

    def verify(self, name: str) -> None:
        """Compare the files of a checkpoint with its manifest.

        Raises:
            RunError: if a file is missing, unexpected, unreadable or has another digest.
        """
        place = self.folder / name
        manifest = place / MANIFEST
        try:
            names = sorted(p.name for p in place.iterdir() if p.name != MANIFEST)
            digests = {file: _digest(place / file) for file in names}
            _require_regular(manifest)
            found = manifest.read_bytes()
        except OSError as error:
            raise RunError(f"cannot read {error.filename or place}: {error.strerror}") from error
        for file, digest in digests.items():
            if _line(file, digest) not in found.splitlines(keepends=True):
                raise RunError(
                    f"{place / file} is damaged: its SHA-256 is not listed in {MANIFEST}"
                )
        if found != _manifest(digests):
            raise RunError(f"{manifest} is damaged, or a file that it lists is missing")

    def read_record(self, name: str) -> CheckpointRecord:
        """Read the JSON files of a checkpoint.

        Raises:
            RunError: if a file is missing or damaged.
        """
        return CheckpointRecord.read(self.folder / name)

    def read_state(
        self, name: str, specs: Mapping[str, TensorSpec], optional: Collection[str]
    ) -> Tensors:
        """Read the tensors of a checkpoint; see `read_tensor_file`."""
        return read_tensor_file(self.folder / name / STATE, specs, optional=optional)[0]

    def read_file(self, name: str, file: str) -> bytes | None:
        """Return the contents of a file of a checkpoint, or None if there is no such file."""
        path = self.folder / name / file
        return path.read_bytes() if path.is_file() else None

    def keep_only(self, names: Collection[str]) -> None:
        """Remove all checkpoints except the named ones."""
        for name in self.names():
            if name not in names:
                shutil.rmtree(self.folder / name)

    def remove_unfinished(self) -> None:
        """Remove the unfinished checkpoints of a killed process.

        A checkpoint that was moved aside for an unfinished one is restored.
        """
        for aside in self.folder.glob(f".step-*.old{UNFINISHED}"):
            place = self.folder / aside.name[1 : -len(f".old{UNFINISHED}")]
            if not place.exists():
                os.rename(aside, place)
        remove_unfinished(self.folder)


def _write_directory(directory: Path, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for file, data in files.items():
        write_bytes(directory / file, data)
        flush(directory / file)
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    write_bytes(directory / MANIFEST, _manifest(digests))
    flush(directory / MANIFEST)
    flush(directory)


def _manifest(digests: Mapping[str, str]) -> bytes:
    return b"".join(_line(file, digests[file]) for file in sorted(digests))


def _line(file: str, digest: str) -> bytes:
    return f"{digest}  {file}\n".encode("utf-8", "surrogateescape")


def _digest(file: Path) -> str:
    """Return the SHA-256 of a file, bypassing the page cache where the system supports it."""
    _require_regular(file)
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if hasattr(os, "posix_fadvise"):
            # Drop the flushed pages from the cache so that the data are read from the disk.
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _require_regular(file: Path) -> None:
    """Raise RunError if a file is not regular; reading a pipe could block forever."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise RunError(f"{file} is not a regular file")
