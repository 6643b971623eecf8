"""Choose the library of the kernels: one that the wheel contains, or one that is built here.

A wheel contains a library for each variant of `variants.py`; the fastest one that the processor
executes and for which the operating system saves the registers is taken. Other installations
compile the sources for this machine. RECURRA_KERNELS disables the kernels or selects a variant.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from recurra.errors import ConfigError, KernelError
from recurra.kernels import builder
from recurra.kernels.compilers import PROCESSOR
from recurra.kernels.variants import NATIVE, Variant, architecture, library_suffix, variants_of

PACKAGED = Path(__file__).parent / "bin"
"""The libraries of a wheel; the directory does not exist in other installations."""

_OFF = ("0", "off", "no", "false")
AUTOMATIC = ("", "1", "on", "yes", "true", "auto")
"""Values of RECURRA_KERNELS and RECURRA_MATMUL that leave the selection to recurra."""


@dataclass(frozen=True)
class Selection:
    """The library to use.

    Attributes:
        variant: the name of a variant, or NATIVE.
        packaged: its library in the wheel, or None if it is built here.
    """

    variant: str
    packaged: Path | None

    @property
    def path(self) -> Path | None:
        """The existing library, or None if it is not built yet."""
        return self.packaged or builder.built_library(self.variant)

    @property
    def folder(self) -> Path:
        """The directory for the build, and for what is measured with the library.

        Raises:
            KernelError: there is no cache directory.
        """
        return builder.build_folder(self.variant)

    @property
    def origin(self) -> str:
        """Where the library comes from, for messages."""
        return "from the wheel" if self.packaged else "built here"


def is_switched_off() -> bool:
    """Return whether RECURRA_KERNELS disables the kernels."""
    return _requested() in _OFF


def select() -> Selection:
    """Return the library to use, which may have to be built.

    Raises:
        KernelError: the kernels are disabled, or the features of the processor are unknown because
            the library that reads them cannot be built.
        ConfigError: RECURRA_KERNELS names a variant that does not exist or that this machine cannot
            execute.
    """
    requested = _requested()
    if requested in _OFF:
        raise KernelError("the compiled kernels are switched off (RECURRA_KERNELS)")
    if requested == NATIVE:
        return Selection(NATIVE, None)
    if requested in AUTOMATIC:
        return _automatic()
    return _forced(requested)


def _requested() -> str:
    return os.environ.get("RECURRA_KERNELS", "").strip().lower()


def _automatic() -> Selection:
    if PACKAGED.is_dir():
        for variant in executable_variants():
            if (path := packaged_library(variant.name)) is not None:
                return Selection(variant.name, path)
    return Selection(NATIVE, None)


def _forced(name: str) -> Selection:
    variants = {variant.name: variant for variant in variants_of(architecture())}
    if name not in variants:
        choices = ", ".join(["off", NATIVE, *variants])
        raise ConfigError(f"RECURRA_KERNELS is {name!r}, but the choices are {choices}")
    missing = variants[name].features - processor_features()
    if missing:
        choices = ", ".join(["off", NATIVE, *(v.name for v in executable_variants())])
        raise ConfigError(
            f"this machine cannot execute the kernels {name} (RECURRA_KERNELS), because it lacks"
            f" {', '.join(sorted(missing))}; the choices here are {choices}"
        )
    return Selection(name, packaged_library(name))


def packaged_library(name: str) -> Path | None:
    """Return a library of the wheel, or None if there is none."""
    path = PACKAGED / f"{name}{library_suffix()}"
    return path if path.is_file() else None


def executable_variants() -> list[Variant]:
    """Return the variants that this machine can execute, from the fastest to the slowest.

    Raises:
        KernelError: as for `processor_features`.
    """
    return [v for v in variants_of(architecture()) if v.features <= processor_features()]


@cache
def processor_features() -> frozenset[str]:
    """Return the features of the processor that the operating system enables.

    They are read by a small library, which is compiled first if it is not in the wheel.

    Raises:
        KernelError: it cannot be compiled or loaded.
    """
    if architecture() is None:
        return frozenset()
    path = packaged_library(PROCESSOR) or builder.build(PROCESSOR)
    try:
        function = ctypes.CDLL(str(path)).recurra_processor_features
    except (OSError, AttributeError) as error:
        raise KernelError(f"cannot load {path}: {error}") from error
    function.restype = ctypes.c_char_p
    return frozenset(function().decode().split())
