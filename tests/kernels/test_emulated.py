"""The kernels against plain scalar code in C++: on this machine, and on others in an emulator."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from recurra.errors import KernelError
from recurra.kernels import builder, compilers, selection
from recurra.kernels.variants import PLATFORMS, X86_64, architecture

PROGRAM = Path(__file__).with_name("compare_with_scalar_code.cpp")
ARM = next(platform for platform in PLATFORMS if platform.name == "linux-aarch64")
ARM_LIBRARIES = Path("/usr/aarch64-linux-gnu")
"""The libraries of Debian's package libc6-arm64-cross."""


def executable() -> list[str]:
    """Return the names of the variants, or none where they cannot be built."""
    try:
        return [variant.name for variant in selection.executable_variants()]
    except KernelError:
        return []


def compile_program(command: list[str], program: Path) -> None:
    include = f"-I{compilers.SOURCES}"
    flags = ["-std=c++17", "-O1", include, str(PROGRAM), "-pthread", "-ldl", "-o", str(program)]
    subprocess.run([*command, *flags], check=True, timeout=300)


def check(command: list[str], lanes: int) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"vectors of {lanes} numbers"
    assert sum(line.startswith("equal ") for line in lines) > 200


@pytest.mark.slow
@pytest.mark.parametrize("variant", executable())
def test_kernels_equal_scalar_code(variant, tmp_path):
    compile_program(compilers.compiler(), tmp_path / "program")
    lanes = {"sse4": 4, "neon": 4, "avx2": 8}.get(variant, 16)
    check([str(tmp_path / "program"), str(builder.build(variant))], lanes)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="no qemu-x86_64")
@pytest.mark.skipif(architecture() != X86_64 or not executable(), reason="no compiler for x86-64")
@pytest.mark.parametrize(
    ("variant", "processor", "lanes"), [("sse4", "Nehalem", 4), ("avx2", "Haswell", 8)]
)
def test_kernels_run_on_oldest_processor_of_variant(variant, processor, lanes, tmp_path):
    compile_program(compilers.compiler(), tmp_path / "program")
    emulator = ["qemu-x86_64", "-cpu", processor]
    check([*emulator, str(tmp_path / "program"), str(builder.build(variant))], lanes)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="no qemu-aarch64")
@pytest.mark.skipif(not ARM_LIBRARIES.is_dir(), reason="no libc6-arm64-cross")
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="no ziglang")
def test_kernels_for_arm_equal_scalar_code_in_emulator(tmp_path, caplog):
    libraries = {path.stem: path for path in compilers.compile_platform(ARM, tmp_path)}
    assert libraries.keys() == {"processor", "neon"}
    assert caplog.text == ""  # No warning of the compiler.
    compile_program([*compilers.ZIG, "-target", ARM.target], tmp_path / "program")
    emulator = ["qemu-aarch64", "-cpu", "cortex-a57", "-L", str(ARM_LIBRARIES)]
    check([*emulator, str(tmp_path / "program"), str(libraries["neon"])], 4)
