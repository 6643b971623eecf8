"""`recurra doctor`: report the environment, missing parts and how to install them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import recurra
from recurra.cli.parsing import parse

_EXTRAS = {"plot": "matplotlib", "bpe": "tokenizers"}


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Report on this machine: versions, devices, threads, backends, extras, disk, data."""

    json: bool = False
    """Print JSON."""


def run(arguments: Sequence[str]) -> int:
    """Print the findings."""
    command = parse(Doctor, "doctor", arguments)
    findings = {**_versions(), **_compute(), **_extras(), **_places()}
    if command.json:
        print(json.dumps(findings, ensure_ascii=False))
    else:
        for name, finding in findings.items():
            print(f"{name:<12} {finding}")
    return 0


def _versions() -> dict[str, str]:
    names = ("torch", "numpy", "safetensors", "tyro", "rich")
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return {
        "recurra": recurra.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "libraries": libraries,
    }


def _compute() -> dict[str, str]:
    import torch

    from recurra.config.backends import BACKEND_MODULES

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "devices": ", ".join(devices),
        "processor": f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{torch.get_num_threads()} (--threads)",
        "compiler": _compiler(),
        "kernels": _kernels(),
        "backends": f"{', '.join(BACKEND_MODULES)}; auto on a cpu takes {_chosen()}",
    }


def _compiler() -> str:
    from recurra.kernels import builder

    name = builder.find_compiler()
    if name is None:
        return f"none ({', '.join(builder.COMPILERS)}, or CXX); without one there are no kernels"
    return builder.compiler_version(name)


def _kernels() -> str:
    """Describe the state of the compiled kernels, without building them."""
    from recurra.errors import KernelError
    from recurra.kernels import builder, library

    if library.is_switched_off():
        return "switched off (RECURRA_KERNELS)"
    if (path := builder.built_library()) is not None:
        try:
            return f"{library.describe()}; {path}"
        except KernelError as error:
            return f"{error}; recurra kernels clean, then recurra kernels build"
    if (log := builder.failed_log()) is not None:
        return f"could not be built, see {log}; recurra kernels build tries again"
    return "not built yet; they are when first used, or by recurra kernels build"


def _chosen() -> str:
    import torch

    from recurra.kernels import builder, library
    from recurra.recurrence.backends import Requirements
    from recurra.recurrence.cells import find_cell
    from recurra.recurrence.layer import choose_backend

    cpu = torch.device("cpu")
    # A choice that includes the compiled kernels would build them.
    built = builder.built_library() is not None or library.is_switched_off()
    exclude = () if built else ("native",)
    taken = {
        cell: choose_backend(Requirements(find_cell(cell), cpu), exclude=exclude)
        for cell in ("rnn", "gru", "lstm")
    }
    listed = ", ".join(f"{cell}: {backend}" for cell, backend in taken.items())
    return listed if built else f"{listed}; native once the kernels are built"


def _extras() -> dict[str, str]:
    found = {}
    for extra, package in _EXTRAS.items():
        try:
            version = importlib.metadata.version(package)
            found[f"extra {extra}"] = f"{package} {version}"
        except importlib.metadata.PackageNotFoundError:
            found[f"extra {extra}"] = f"missing; pip install 'recurra[{extra}]'"
    return found


def _places() -> dict[str, str]:
    from recurra.io.files import cache_folder
    from recurra.text import catalogue

    cache = cache_folder()
    data = catalogue.data_folder()
    free = shutil.disk_usage(Path.cwd()).free
    there = "" if data is None or data.is_dir() else " (there is no such folder)"
    return {
        "data": f"RECURRA_DATA is not set, downloads go to {cache}"
        if data is None
        else f"{data}{there}, then {cache}",
        "disk": f"{free / 2**30:.1f} GB free here",
    }
