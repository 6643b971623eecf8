"""`recurra doctor`: report the environment, missing parts and how to install them."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import recurra
from recurra.cli.parsing import parse
from recurra.cli.showing import json_line, safe_for_stdout
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
        print(json_line(findings))
    else:
        for name, finding in findings.items():
            print(safe_for_stdout(f"{name:<12} {finding}"))
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
    from recurra.runtime import cores
    from recurra.runtime.devices import device_is_supported, processor_name

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    if len(devices) == 1 and not any(map(device_is_supported, ("cuda", "mps"))):
        devices[0] += " (this build of torch supports no GPU)"
    triton = {"triton": _triton()} if torch.cuda.is_available() else {}
    return {
        "devices": ", ".join(devices),
        **triton,
        "processor": processor_name(),
        "threads": f"{cores.describe()}; --threads changes it",
        "compiler": _compiler(),
        "kernels": _kernels(),
        "bf16 matmul": _matmul(),
        "backends": f"{', '.join(BACKEND_MODULES)}; auto selects on the CPU: {_auto_selection()}",
    }


def _triton() -> str:
    """Compile Triton's kernels for the current GPU, and describe whether they can be used."""
    import torch

    from recurra.recurrence.backends import triton_scan

    reason = triton_scan.unavailable(torch.device("cuda", torch.cuda.current_device()))
    if reason is not None:
        return f"not used for linear scans: {reason}"
    # The distribution for ROCm has another name, so its metadata cannot be read by the name triton.
    return f"{importlib.import_module('triton').__version__}; used for linear scans"


def _compiler() -> str:
    from recurra.errors import KernelError
    from recurra.kernels import compilers

    try:
        return compilers.compiler_version()
    except KernelError as error:
        _, path = _kernel_state()
        return f"{error}; required to build the kernels" if path is None else "none, not required"


def _kernel_state() -> tuple[str | None, Path | None]:
    """Return why the kernels cannot be used, or None, and their library, if there is one."""
    from recurra.errors import ConfigError
    from recurra.kernels import library, selection

    try:
        reason = library.reason_unavailable()
        return reason, None if reason else selection.select().path
    except ConfigError as error:
        return str(error), None


def _kernels() -> str:
    """Describe the state of the compiled kernels, without building them."""
    from recurra.errors import KernelError
    from recurra.kernels import library

    reason, path = _kernel_state()
    if reason is not None:
        return f"unavailable: {reason}"
    if path is None:
        return "not built; they are built on first use or by recurra kernels build"
    try:
        return f"{library.describe()}; {path}"
    except KernelError as error:
        return f"{error}; run recurra kernels clean, then recurra kernels build"


def _matmul() -> str:
    """Describe the matrix-product kernels, and measure them if that was not done before."""
    from recurra.errors import KernelError
    from recurra.kernels import matmul_selection

    reason, path = _kernel_state()
    if reason is not None:
        return "not available without the kernels"
    if path is None:
        return "measured when the kernels are first used"
    try:
        return matmul_selection.describe(matmul_selection.matmul_kernels())
    except KernelError as error:
        return str(error)


def _auto_selection() -> str:
    """Describe the backend that `auto` selects for each cell, without building the kernels."""
    import torch

    from recurra.recurrence.backends import Requirements
    from recurra.recurrence.cells import find_cell
    from recurra.recurrence.layer import choose_backend

    cpu = torch.device("cpu")
    reason, path = _kernel_state()
    is_built = path is not None
    # Checking whether the compiled kernels are available would build them.
    exclude = () if is_built else ("native",)
    selected = {
        cell: choose_backend(Requirements(find_cell(cell), cpu), exclude=exclude)
        for cell in ("rnn", "gru", "lstm")
    }
    listed = ", ".join(f"{cell}: {backend}" for cell, backend in selected.items())
    return (
        f"{listed}; native once the kernels are built"
        if reason is None and not is_built
        else listed
    )


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
    from recurra.errors import ConfigError
    from recurra.io.files import cache_folder
    from recurra.text import catalogue

    try:
        cache = str(cache_folder())
    except ConfigError as error:
        cache = f"no cache: {error}"
    data = catalogue.data_folder()
    free = shutil.disk_usage(Path.cwd()).free
    missing = "" if data is None or data.is_dir() else " (does not exist)"
    return {
        "data": f"{cache} (RECURRA_DATA is not set)"
        if data is None
        else f"{data}{missing}, then {cache}",
        "disk": f"{free / 2**30:.1f} GiB free in the current directory",
    }
