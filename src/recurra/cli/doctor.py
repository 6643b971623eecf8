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
from recurra.installation import install_command

_EXTRAS = {"plot": "matplotlib", "bpe": "tokenizers"}


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Report versions, devices, threads, kernels, backends, optional extras, data and disk
    space."""

    json: bool = False
    """Print the result as JSON."""


def run(arguments: Sequence[str]) -> int:
    """Print the report and return the exit code."""
    command = parse(Doctor, "doctor", arguments)
    findings = {**_versions(), **_compute(), **_extras(), **_storage()}
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
        "backends": f"{', '.join(BACKEND_MODULES)}; auto selects on the CPU: {_auto_selection()}",
    }


def _compiler() -> str:
    from recurra.kernels import builder

    name = builder.find_compiler()
    if name is None:
        return f"none found ({', '.join(builder.COMPILERS)} or CXX); required to build the kernels"
    return builder.compiler_version(name)


def _kernels() -> str:
    """Describe the state of the compiled kernels, without building them."""
    from recurra.errors import KernelError
    from recurra.kernels import builder, library

    if library.is_switched_off():
        return "disabled (RECURRA_KERNELS)"
    if (path := builder.built_library()) is not None:
        try:
            return f"{library.describe()}; {path}"
        except KernelError as error:
            return f"{error}; run recurra kernels clean, then recurra kernels build"
    if (log := builder.failed_log()) is not None:
        return f"build failed, see {log}; recurra kernels build tries again"
    return "not built; they are built on first use or by recurra kernels build"


def _auto_selection() -> str:
    """Describe the backend that `auto` selects for each cell, without building the kernels."""
    import torch

    from recurra.kernels import builder, library
    from recurra.recurrence.backends import Requirements
    from recurra.recurrence.cells import find_cell
    from recurra.recurrence.layer import choose_backend

    cpu = torch.device("cpu")
    # Checking whether the compiled kernels are available would build them.
    built = builder.built_library() is not None or library.is_switched_off()
    exclude = () if built else ("native",)
    selected = {
        cell: choose_backend(Requirements(find_cell(cell), cpu), exclude=exclude)
        for cell in ("rnn", "gru", "lstm")
    }
    listed = ", ".join(f"{cell}: {backend}" for cell, backend in selected.items())
    return listed if built else f"{listed}; native once the kernels are built"


def _extras() -> dict[str, str]:
    found = {}
    for extra, package in _EXTRAS.items():
        try:
            version = importlib.metadata.version(package)
            found[f"extra {extra}"] = f"{package} {version}"
        except importlib.metadata.PackageNotFoundError:
            found[f"extra {extra}"] = f"missing; {install_command(extra)}"
    return found


def _storage() -> dict[str, str]:
    from recurra.io.files import cache_folder
    from recurra.text import catalogue

    cache = cache_folder()
    data = catalogue.data_folder()
    free = shutil.disk_usage(Path.cwd()).free
    missing = "" if data is None or data.is_dir() else " (does not exist)"
    return {
        "data": f"{cache} (RECURRA_DATA is not set)"
        if data is None
        else f"{data}{missing}, then {cache}",
        "disk": f"{free / 2**30:.1f} GiB free in the current directory",
    }
