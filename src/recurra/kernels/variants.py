"""The variants of the compiled kernels, and the platforms for which a wheel carries them.

The variants of a platform are built from the same sources, each for processors with certain
instruction sets. This module imports only the standard library, because the build hook of the
wheels (`hatch_build.py`) reads it.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

X86_64, AARCH64 = "x86-64", "aarch64"

NATIVE = "native"
"""The name of the build for exactly this machine, which is not in the tables."""


@dataclass(frozen=True)
class Variant:
    """The kernels for processors with certain instruction sets.

    Attributes:
        name: the value of RECURRA_KERNELS that selects the variant.
        architecture: X86_64 or AARCH64.
        processor: the processor for which the compiler translates, as in its option `-march`;
            empty for the oldest one of the architecture.
        extensions: instruction sets that are used as well, as in the compiler's options `-mNAME`,
            or, for ARM, `-march=PROCESSOR+NAME`.
        features: what the processor must have and the operating system must enable, as
            `source/processor.cpp` names it.
    """

    name: str
    architecture: str
    processor: str = ""
    extensions: tuple[str, ...] = ()
    features: frozenset[str] = frozenset()


_SSE4 = frozenset({"ssse3", "sse4.1", "sse4.2", "popcnt"})
_AVX2 = _SSE4 | {"avx", "avx2", "fma", "f16c", "movbe", "bmi1", "bmi2", "lzcnt"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_AMX = ("amx-tile", "amx-bf16")

VARIANTS = (
    Variant("amx", X86_64, "x86-64-v4", ("avx512bf16", *_AMX), _AVX512 | {"avx512bf16", *_AMX}),
    Variant("avx512-bf16", X86_64, "x86-64-v4", ("avx512bf16",), _AVX512 | {"avx512bf16"}),
    Variant("avx512", X86_64, "x86-64-v4", (), _AVX512),
    Variant("avx2", X86_64, "x86-64-v3", (), _AVX2),
    Variant("sse4", X86_64, "x86-64-v2", (), _SSE4),
    Variant("neon-bf16", AARCH64, "armv8.2-a", ("bf16",), frozenset({"bf16"})),
    Variant("neon", AARCH64),
)
"""All variants; those of an architecture from the fastest to the slowest."""


def architecture() -> str | None:
    """Return the architecture of this process as in `VARIANTS`, or None if it is another one."""
    machine = platform.machine().lower()
    if machine in ("arm64", "aarch64"):
        return AARCH64
    return X86_64 if machine in ("x86_64", "amd64") and sys.maxsize > 2**32 else None


def variants_of(architecture: str | None) -> tuple[Variant, ...]:
    """Return the variants of an architecture, from the fastest to the slowest."""
    return tuple(v for v in VARIANTS if v.architecture == architecture)


def find_variant(name: str) -> Variant | None:
    """Return the variant of a name, or None if there is no such variant (for example `NATIVE`)."""
    return next((v for v in VARIANTS if v.name == name), None)


def library_suffix(system: str = sys.platform) -> str:
    """Return the suffix of a shared library on a system, named as `sys.platform` names it."""
    return {"win32": ".dll", "darwin": ".dylib"}.get(system, ".so")


@dataclass(frozen=True)
class Platform:
    """A platform for which a wheel is built.

    Attributes:
        name: its name for the build hook.
        system: its `sys.platform`.
        architecture: X86_64 or AARCH64.
        target: its name for `zig c++ -target`, with the oldest supported system.
        tag: the platform tag of the wheel.
    """

    name: str
    system: str
    architecture: str
    target: str
    tag: str


PLATFORMS = (
    Platform("linux-x86_64", "linux", X86_64, "x86_64-linux-gnu.2.28", "manylinux_2_28_x86_64"),
    Platform("linux-aarch64", "linux", AARCH64, "aarch64-linux-gnu.2.28", "manylinux_2_28_aarch64"),
    Platform("macos-x86_64", "darwin", X86_64, "x86_64-macos.11.0", "macosx_11_0_x86_64"),
    Platform("macos-arm64", "darwin", AARCH64, "aarch64-macos.11.0", "macosx_11_0_arm64"),
    Platform("windows-x86_64", "win32", X86_64, "x86_64-windows-gnu", "win_amd64"),
    Platform("windows-arm64", "win32", AARCH64, "aarch64-windows-gnu", "win_arm64"),
)
"""All platforms. glibc 2.28 is the oldest one with which torch works."""
