"""Find a C++ compiler, and compile the sources of a shared library with it.

Like `variants.py`, this module does without torch, because the build hook of the wheels uses it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from recurra.errors import KernelError
from recurra.installation import install_command
from recurra.kernels.variants import (
    AARCH64,
    Platform,
    Variant,
    architecture,
    library_suffix,
    variants_of,
)

SOURCES = Path(__file__).parent / "source"
PROCESSOR_SOURCE = SOURCES / "processor.cpp"
"""The source of the library that states the features of the processor."""
PROCESSOR = "processor"
"""The name of that library, where variants have theirs."""

COMPILERS = ("g++", "c++", "clang++")
"""Compilers in the order in which they are tried, unless `CXX` names one; then `ZIG`."""
ZIG = (sys.executable, "-m", "ziglang", "c++")
"""The compiler of the package `ziglang`, if it is installed (the extra `compiler`)."""
TIMEOUT = 600
"""Seconds after which the compiler is killed."""

_logger = logging.getLogger(__name__)

COMMON_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fvisibility=hidden")


def compiler() -> list[str]:
    """Return the command of the C++ compiler: `CXX`, one of `COMPILERS` on the PATH, or `ZIG`.

    Raises:
        KernelError: no compiler is installed, or `CXX` names a program that does not exist.
    """
    chosen = shlex.split(os.environ.get("CXX", ""))
    command = chosen or [name for name in COMPILERS if shutil.which(name)][:1]
    if not command and importlib.util.find_spec("ziglang") is not None:
        return list(ZIG)
    if not command:
        raise KernelError(
            f"no C++ compiler is installed ({', '.join(COMPILERS)}, or CXX);"
            f" {install_command('compiler')} installs one"
        )
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
    version = output.partition("\n")[0] or shlex.join(command)
    return f"{version} of the package ziglang" if command == list(ZIG) else version


def kernel_sources() -> list[Path]:
    """Return the sources of the kernels."""
    return [source for source in sorted(SOURCES.glob("*.cpp")) if source != PROCESSOR_SOURCE]


def machine_flags(command: Sequence[str], variant: Variant | None) -> list[str]:
    """Return the compiler's options for a variant, or for exactly this machine.

    Args:
        command: the command of the compiler: zig has other names for processors than GCC and clang.
    """
    is_zig = "ziglang" in command or Path(command[0]).stem == "zig"
    if variant is None:
        return ["-mcpu=native" if architecture() == AARCH64 else "-march=native"]
    if variant.architecture == AARCH64:
        return _arm_flags(variant, is_zig)
    processor = variant.processor.replace("-", "_") if is_zig else variant.processor
    flags = [f"-march={processor}"] if processor else []
    # clang splits vectors of 512 bits for these processors unless told otherwise.
    wide = ["-mprefer-vector-width=512"] if "avx512f" in variant.features else []
    return [*flags, *(f"-m{name}" for name in variant.extensions), *wide]


def _arm_flags(variant: Variant, is_zig: bool) -> list[str]:
    processor = variant.processor
    if is_zig and processor:
        # zig has versions of the architecture as features of a processor: v8_2a for armv8.2-a.
        processor = f"generic+{processor[3:].replace('.', '_').replace('-', '')}"
    return [f"-march={'+'.join((processor, *variant.extensions))}"] if processor else []


def compile_library(
    command: Sequence[str],
    sources: Sequence[Path],
    flags: Sequence[str],
    library: Path,
    system: str = sys.platform,
) -> str:
    """Compile sources in parallel, link them, and return what the compiler printed.

    The library does not exist afterwards if the compiler failed. Object files are left beside it.

    Args:
        flags: the compiler's options besides the common ones; the linker receives them too.
        system: the system that the library is for, as `sys.platform` names it.
    """
    # The runtime libraries of mingw are not installed on a user's machine.
    common = ("-static",) if system == "win32" else ("-fPIC", "-pthread")
    objects = [library.with_name(f"{library.stem}-{source.stem}.o") for source in sources]
    base_command = [*command, *COMMON_FLAGS, *common, *flags]
    compiling = [
        [*base_command, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)
    ]
    output, is_success = _run_all(compiling, library.parent)
    if is_success:
        # By default, a library of macOS contains the path at which it was linked.
        name = [f"-Wl,-install_name,@rpath/{library.name}"] if system == "darwin" else []
        linking = [*base_command, "-shared", "-s", *name, *map(str, objects), "-o", str(library)]
        output += _run_all([linking], library.parent)[0]
    return output


def compile_platform(platform: Platform, folder: Path) -> Iterator[Path]:
    """Compile the libraries of a platform with `ZIG`, and yield the path of each.

    What the compiler printed is logged as a warning.

    Raises:
        KernelError: the compiler failed; the text is its output.
    """
    jobs: list[tuple[str, list[Path], list[str]]] = [(PROCESSOR, [PROCESSOR_SOURCE], [])]
    for variant in variants_of(platform.architecture):
        jobs.append((variant.name, kernel_sources(), machine_flags(ZIG, variant)))
    for name, sources, flags in jobs:
        library = folder / f"{name}{library_suffix(platform.system)}"
        flags = ["-target", platform.target, *flags]
        output = compile_library(ZIG, sources, flags, library, platform.system)
        if not library.is_file():
            raise KernelError(output)
        if printed := [line for line in output.splitlines() if not line.startswith("$ ")]:
            _logger.warning("%s:\n%s", library.name, "\n".join(printed))
        yield library


def _run_all(commands: list[list[str]], folder: Path) -> tuple[str, bool]:
    """Run commands at the same time; return their output and whether all succeeded."""
    # zig compiles its C++ library on first use, for which a user's home need not be writable.
    caches = {name: str(folder / "zig") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    # Temporary files are on the same disk as the library, so that only one disk can be full, which
    # is recognized by the English message.
    fixed = {**dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(folder)), "LC_ALL": "C"}
    output, running = "", []
    for command in commands:
        output += f"$ {shlex.join(command)}\n"
        try:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=caches | os.environ | fixed,
            )
        except OSError as error:
            output += f"{error}\n"
            break
        running.append(process)
    for process in running:
        output += _wait_for(process)
    is_success = len(running) == len(commands) and not any(p.returncode for p in running)
    return output, is_success


def _wait_for(process: subprocess.Popen[bytes]) -> str:
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        output += f"\nended after {TIMEOUT} s\n".encode()
    return output.decode(errors="replace")
