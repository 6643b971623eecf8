"""Compile the kernels once for each version of the sources, torch, and machine type.

The library is stored in the cache directory under a name derived from all three. A binary for
another machine is therefore never loaded, and a change of any of them causes a new build.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from recurra.errors import ConfigError, KernelError
from recurra.io.files import cache_folder, flush, replace_bytes

SOURCES = Path(__file__).parent / "source"
LIBRARY = "recurra-kernels.so"
LOG = "build.log"
COMPILERS = ("g++", "c++", "clang++")
"""Compilers in the order in which they are tried, unless `CXX` names one."""
TIMEOUT = 600
"""Seconds after which the compiler is killed."""


def kernels_folder() -> Path:
    """Return the directory of all builds.

    Raises:
        KernelError: there is no cache directory, because the home directory is unknown.
    """
    try:
        return cache_folder() / "kernels"
    except ConfigError as error:
        raise KernelError(str(error)) from error


def build_folder() -> Path:
    """Return the directory of the build for this machine, torch and these sources."""
    return kernels_folder() / f"torch-{torch.__version__}-{_fingerprint()}"


def compiler() -> list[str]:
    """Return the command of the C++ compiler: `CXX`, or the first of `COMPILERS` on the PATH.

    Raises:
        KernelError: no compiler is installed, or `CXX` names a program that does not exist.
    """
    chosen = shlex.split(os.environ.get("CXX", ""))
    command = chosen or [name for name in COMPILERS if shutil.which(name)][:1]
    if not command:
        raise KernelError(f"no C++ compiler is installed ({', '.join(COMPILERS)}, or CXX)")
    if shutil.which(command[0]) is None:
        raise KernelError(f"the C++ compiler of CXX, {command[0]}, is not installed")
    return command


def compiler_version() -> str:
    """Return the first line of the compiler's version message, or its command without one.

    Raises:
        KernelError: as for `compiler`.
    """
    command = compiler()
    try:
        output = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"{shlex.join(command)} ({error})"
    return output.partition("\n")[0] or shlex.join(command)


def reason_not_buildable() -> str | None:
    """Return why the kernels cannot be built, as far as is known in advance, or None.

    An earlier build that failed does not prevent a new one.
    """
    try:
        compiler()
        folder = build_folder()
    except KernelError as error:
        return str(error)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return _not_writable(folder, f"{existing} is not a writable directory")
    return None


def built_library() -> Path | None:
    """Return the library for this machine, if it is built."""
    path = build_folder() / LIBRARY
    return path if path.is_file() else None


def failed_log() -> Path | None:
    """Return the log of an earlier build that failed and was not repeated, if there is one."""
    path = build_folder() / LOG
    return path if path.is_file() and built_library() is None else None


def build() -> Path:
    """Compile the kernels unless another process has done so, and return the library's path.

    Raises:
        KernelError: there is no compiler, or it failed; the text names the log.
    """
    folder = build_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            return built_library() or _compile(folder)
    except OSError as error:
        raise KernelError(_not_writable(folder, str(error.strerror or error))) from error


def _not_writable(folder: Path, reason: str) -> str:
    return f"cannot build kernels in {folder}: {reason}; set RECURRA_CACHE to another directory"


def clean() -> int:
    """Remove the builds for all machines, and return their number."""
    folders = [p for p in kernels_folder().glob("torch-*") if p.is_dir()]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return len(folders)


def _compile(folder: Path) -> Path:
    command = compiler()
    with tempfile.TemporaryDirectory(prefix=".build", dir=folder) as work:
        library = Path(work) / LIBRARY
        log = _run_compiler(command, library)
        replace_bytes(folder / LOG, log.encode(errors="replace"))
        if not library.is_file():
            raise KernelError(
                f"{shlex.join(command)} could not build the kernels; see {folder / LOG}"
            )
        flush(library)
        os.replace(library, folder / LIBRARY)
    return folder / LIBRARY


def _run_compiler(compiler: list[str], library: Path) -> str:
    """Compile the sources in parallel, link them, and return the output of the compiler."""
    objects, running = [], []
    said = ""
    for source in sorted(SOURCES.glob("*.cpp")):
        objects.append(library.with_name(f"{source.stem}.o"))
        command = [*compiler, *_flags(), "-c", str(source), "-o", str(objects[-1])]
        said += f"$ {' '.join(command)}\n"
        try:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
        except OSError as error:
            return f"{said}{error}\n"
        running.append(process)
    for process in running:
        said += _wait_for(process)
    if any(process.returncode for process in running):
        return said
    command = [*compiler, "-shared", *map(str, objects), "-o", str(library), *_link_flags()]
    said += f"$ {' '.join(command)}\n"
    linking = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    )
    return said + _wait_for(linking)


def _wait_for(process: subprocess.Popen[bytes]) -> str:
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        output += f"\nended after {TIMEOUT} s\n".encode()
    return output.decode(errors="replace")


def _flags() -> list[str]:
    arm = platform.machine().lower() in ("arm64", "aarch64")
    machine = "-mcpu=native" if arm else "-march=native"
    return [
        "-std=c++17",
        "-O3",
        machine,
        "-fno-math-errno",
        "-fPIC",
        "-pthread",
        "-fvisibility=hidden",
        *shlex.split(os.environ.get("CXXFLAGS", "")),
    ]


def _link_flags() -> list[str]:
    """Return the flags that link torch's libraries."""
    folder = Path(torch.__file__).parent / "lib"
    if sys.platform == "darwin":
        return ["-undefined", "dynamic_lookup"]
    return [f"-L{folder}", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{folder}"]


@cache
def _fingerprint() -> str:
    """Return a hash of the sources, the flags and the machine, 16 hex digits."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(f"{source.name}\0".encode() + source.read_bytes() + b"\0")
    digest.update("\0".join((*_flags(), *_link_flags(), _machine())).encode())
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
