"""`recurra doctor`: what this machine has, what is missing and how to get it."""

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
    """Look at this machine: versions, devices, threads, backends, extras, disk, data."""

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

    from recurra.recurrence.scan import BACKENDS, choose_backend

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    chosen = {cell: choose_backend(cell, torch.device("cpu")) for cell in ("rnn", "gru", "lstm")}
    auto = ", ".join(f"{cell}: {backend}" for cell, backend in chosen.items())
    return {
        "devices": ", ".join(devices),
        "processor": f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{torch.get_num_threads()} (--threads)",
        "backends": f"{', '.join(BACKENDS)}; auto on a cpu takes {auto}",
    }


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
    from recurra.files import cache_folder
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
