"""`recurra kernels`: build, measure or remove the compiled kernels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from recurra.cli.parsing import parse
from recurra.cli.showing import json_line


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Build the compiled CPU kernels, measure them again, or remove all existing builds.

    The kernels are built automatically on first use. A failed build is not repeated automatically;
    recurra kernels build repeats it.
    """

    action: tyro.conf.Positional[Literal["build", "measure", "clean"]]
    """build compiles the kernels, unless the wheel contains them or they are already built, and
    prints the path of the library; measure times the matrix-product kernels again, selects the
    fastest one for bf16, and replaces the stored result; clean removes all builds, including those
    for other versions and machines, and the measurements."""

    json: bool = False
    """Print the result as JSON."""


def run(arguments: Sequence[str]) -> int:
    """Run the action and return the exit code."""
    command = parse(Kernels, "kernels", arguments)
    if command.action == "build":
        _build(command.json)
    elif command.action == "measure":
        _measure(command.json)
    else:
        _clean(command.json)
    return 0


def _build(as_json: bool) -> None:
    from recurra.kernels import builder, selection

    selected = selection.select()
    is_built = selected.path is not None
    started = time.monotonic()
    path = selected.path or builder.build(selected.variant)
    seconds = time.monotonic() - started
    if as_json:
        print(json_line({"path": str(path), "built": not is_built, "seconds": round(seconds, 1)}))
    else:
        print(path if is_built else f"{path}, built in {seconds:.0f} s")


def _measure(as_json: bool) -> None:
    from recurra.kernels import matmul_selection

    found = matmul_selection.measure_again()
    if as_json:
        print(json_line({"bf16": found.bf16, "wrong": found.wrong, "gflops": found.gflops}))
    else:
        print(f"bf16 matmul: {matmul_selection.describe(found)}")


def _clean(as_json: bool) -> None:
    from recurra.kernels import builder

    count = builder.clean()
    if as_json:
        print(json_line({"removed": count}))
    else:
        print(f"removed {count} from {builder.kernels_folder()}")
