"""Build hook: compile the kernels for a platform and put them into the wheel.

The environment variable RECURRA_WHEEL names the platform (see `PLATFORMS` in
`src/recurra/kernels/variants.py`). The compiler is that of the package `ziglang`, which compiles
for all of them on any machine. Without the variable, the wheel is pure Python, and the kernels are
compiled on the user's machine. `scripts/build-wheels` builds all wheels.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "RECURRA_WHEEL"


class KernelsHook(BuildHookInterface):
    """Adds `recurra/kernels/bin` to the wheel."""

    def dependencies(self) -> list[str]:
        """Return the compiler if it is needed."""
        return ["ziglang>=0.13"] if os.environ.get(VARIABLE) else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the libraries and set the wheel's tag."""
        name = os.environ.get(VARIABLE)
        if not name or version == "editable":
            return
        sys.path.insert(0, str(Path(self.root) / "src"))
        from recurra.kernels.compilers import compile_platform
        from recurra.kernels.variants import PLATFORMS

        platforms = {platform.name: platform for platform in PLATFORMS}
        if name not in platforms:
            raise ValueError(
                f"{VARIABLE} is {name!r}, but the platforms are {', '.join(platforms)}"
            )
        # The files must exist until the wheel is written.
        self._folder = tempfile.TemporaryDirectory(prefix="recurra-wheel")
        for library in compile_platform(platforms[name], Path(self._folder.name)):
            print(f"compiled {library.name} for {name}", file=sys.stderr)
            build_data["force_include"][str(library)] = f"recurra/kernels/bin/{library.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platforms[name].tag}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the libraries."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()
