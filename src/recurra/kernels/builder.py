"""Compile the kernels once for each combination of sources, compiler flags and machine type.

The library is stored in the cache directory under a name derived from all three. A binary for
another machine is therefore never loaded, and a change of any of them causes a new build. By
default, the kernels are compiled for exactly this machine (`NATIVE`); RECURRA_KERNELS can ask for a
variant of `variants.py` instead. The library with the features of the processor is compiled in the
same way, under the name `PROCESSOR`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from filelock import FileLock

from recurra.errors import ConfigError, KernelError
from recurra.io.files import cache_folder, flush, replace_bytes
from recurra.kernels.compilers import (
    COMMON_FLAGS,
    PROCESSOR,
    PROCESSOR_SOURCE,
    SOURCES,
    compile_library,
    compiler,
    kernel_sources,
    machine_flags,
)
from recurra.kernels.variants import NATIVE, find_variant, library_suffix

LIBRARY = f"recurra-kernels{library_suffix()}"
LOG = "build.log"
_DISK_FULL = re.compile("no ?space ?left", re.IGNORECASE)
"""How compilers state that the disk is full: zig writes NoSpaceLeft."""


def kernels_folder() -> Path:
    """Return the directory of all builds.

    Raises:
        KernelError: there is no cache directory, because the home directory is unknown.
    """
    try:
        return cache_folder() / "kernels"
    except ConfigError as error:
        raise KernelError(str(error)) from error


def build_folder(variant: str = NATIVE) -> Path:
    """Return the directory of the build of a variant for this machine and these sources."""
    return kernels_folder() / f"{variant}-{_fingerprint()}"


def reason_not_buildable(variant: str = NATIVE) -> str | None:
    """Return why the kernels cannot be built, as far as is known in advance, or None.

    An earlier build that failed does not prevent a new one.
    """
    try:
        compiler()
        folder = build_folder(variant)
    except KernelError as error:
        return str(error)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return _not_writable(folder, f"{existing} is not a writable directory")
    return None


def built_library(variant: str = NATIVE) -> Path | None:
    """Return the library of a variant, if it is built here."""
    path = build_folder(variant) / LIBRARY
    return path if path.is_file() else None


def failed_log(variant: str = NATIVE) -> Path | None:
    """Return the log of an earlier build that failed and was not repeated, if there is one."""
    path = build_folder(variant) / LOG
    return path if path.is_file() and built_library(variant) is None else None


def build(variant: str = NATIVE) -> Path:
    """Compile the kernels unless another process has done so, and return the library's path.

    Raises:
        KernelError: there is no compiler, or it failed; the text names the log.
    """
    folder = build_folder(variant)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            return built_library(variant) or _compile(variant, folder)
    except OSError as error:
        raise KernelError(_not_writable(folder, str(error.strerror or error))) from error


def _not_writable(folder: Path, reason: str) -> str:
    return f"cannot build kernels in {folder}: {reason}; set RECURRA_CACHE to another directory"


def clean() -> int:
    """Remove the builds for all machines, also those of earlier versions; return their number."""
    name = re.compile(r"[\w.+-]+-[0-9a-f]{16}")
    folders = [p for p in kernels_folder().glob("*-*") if name.fullmatch(p.name) and p.is_dir()]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return len(folders)


def _compile(variant: str, folder: Path) -> Path:
    command = compiler()
    flags = [*machine_flags(command, find_variant(variant)), *_user_flags()]
    with tempfile.TemporaryDirectory(prefix=".build", dir=folder) as work:
        library = Path(work) / LIBRARY
        log = compile_library(command, _sources(variant), flags, library)
        if not library.is_file() and _DISK_FULL.search(log):
            # Without a log, the build is repeated when there is space again.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace_bytes(folder / LOG, log.encode(errors="replace"))
        if not library.is_file():
            raise KernelError(
                f"{shlex.join(command)} could not build the kernels; see {folder / LOG}"
            )
        flush(library)
        os.replace(library, folder / LIBRARY)
    return folder / LIBRARY


def _sources(variant: str) -> list[Path]:
    return [PROCESSOR_SOURCE] if variant == PROCESSOR else kernel_sources()


def _user_flags() -> list[str]:
    return shlex.split(os.environ.get("CXXFLAGS", ""))


@cache
def _fingerprint() -> str:
    """Return a hash of the sources, the flags and the machine, 16 hex digits."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(f"{source.name}\0".encode() + source.read_bytes() + b"\0")
    digest.update("\0".join((*COMMON_FLAGS, *_user_flags(), _machine())).encode())
    return digest.hexdigest()[:16]


def _machine() -> str:
    """Describe the processor, including its instruction set."""
    described = f"{sys.platform} {platform.machine()} {platform.processor()}"
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return described
    # The lines of the first processor, without its clock rate, which changes.
    names = "vendor_id|cpu family|model|model name|flags|Features|CPU implementer|CPU part"
    found = re.findall(rf"^(?:{names})\s*:.*$", text.split("\n\n")[0], re.MULTILINE)
    return "\n".join([described, *found])
