"""`recurra kernels`: build or remove the compiled kernels."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from recurra.cli.parsing import parse


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Build the compiled CPU kernels, or remove all builds.

    They are built by themselves when they are first used; a build that failed is not repeated until
    it is asked for here.
    """

    action: tyro.conf.Positional[Literal["build", "clean"]]
    """build: compile them, unless they are there already, and print where they lie; clean: remove
    every build, for whatever version or machine."""

    json: bool = False
    """Print JSON."""


def run(arguments: Sequence[str]) -> int:
    """Build or clean."""
    command = parse(Kernels, "kernels", arguments)
    if command.action == "build":
        _build(command.json)
    else:
        _clean(command.json)
    return 0


def _build(as_json: bool) -> None:
    from recurra.kernels import builder

    there = builder.built_library() is not None
    started = time.monotonic()
    path = builder.build()
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps({"path": str(path), "built": not there, "seconds": round(seconds, 1)}))
    else:
        print(path if there else f"{path}, built in {seconds:.0f} s")


def _clean(as_json: bool) -> None:
    from recurra.kernels import builder

    count = builder.clean()
    if as_json:
        print(json.dumps({"removed": count}))
    else:
        print(f"{count} removed from {builder.kernels_folder()}")
