"""The kernels against plain scalar code in C++: on this machine, and on others in an emulator."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from logging.handlers import BufferingHandler
from pathlib import Path

import pytest

from recurra.errors import KernelError
from recurra.kernels import builder, compilers, selection
from recurra.kernels.variants import (
    AARCH64,
    PLATFORMS,
    X86_64,
    architecture,
    find_variant,
    library_suffix,
)

PROGRAM = Path(__file__).with_name("compare_with_scalar_code.cpp")
ARM = next(platform for platform in PLATFORMS if platform.name == "linux-aarch64")
ARM_LIBRARIES = Path("/usr/aarch64-linux-gnu")
"""The libraries of Debian's package libc6-arm64-cross."""
ARM_COMPILERS = ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-g++-12", "aarch64-linux-gnu-g++-14")
"""GCC for ARM, of Debian's packages g++-aarch64-linux-gnu and g++-VERSION-aarch64-linux-gnu."""
WITHOUT_BF16, WITH_BF16 = "cortex-a57", "max"
"""Processors of qemu-aarch64."""

SHOW_FEATURES = """
#include <cstdio>
#include <dlfcn.h>
int main(int, char** arguments) {
  void* function = dlsym(dlopen(arguments[1], RTLD_NOW), "recurra_processor_features");
  std::puts(reinterpret_cast<const char* (*)()>(function)());
}
"""

has_arm_emulator = pytest.mark.skipif(
    shutil.which("qemu-aarch64") is None or not ARM_LIBRARIES.is_dir(),
    reason="no qemu-aarch64, or no libc6-arm64-cross",
)


def executable() -> list[str]:
    """Return the names of the variants, or none where they cannot be built."""
    try:
        return [variant.name for variant in selection.executable_variants()]
    except KernelError:
        return []


def compile_program(command: list[str], program: Path, source: Path = PROGRAM) -> None:
    include = f"-I{compilers.SOURCES}"
    flags = ["-std=c++17", "-O1", include, str(source), "-pthread", "-ldl", "-o", str(program)]
    subprocess.run([*command, *flags], check=True, timeout=300)


def arm_emulator(processor: str) -> list[str]:
    return ["qemu-aarch64", "-cpu", processor, "-L", str(ARM_LIBRARIES)]


def check(command: list[str], lanes: int) -> str:
    """Check that a program finds no error, and return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"vectors of {lanes} numbers"
    assert sum(line.startswith("equal ") for line in lines) > 200
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("variant", executable())
def test_kernels_equal_scalar_code(variant, tmp_path):
    compile_program(compilers.compiler(), tmp_path / "program")
    lanes = {"sse4": 4, "neon": 4, "neon-bf16": 4, "avx2": 8}.get(variant, 16)
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


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """Return the libraries of the wheel for Linux on ARM, and a program, by name."""
    if importlib.util.find_spec("ziglang") is None:
        # The package of 90 MB is optional; CONTRIBUTING.md names what these tests need.
        pytest.skip("no ziglang")
    folder, handler = tmp_path_factory.mktemp("arm"), BufferingHandler(100)
    compilers._logger.addHandler(handler)
    files = {path.stem: path for path in compilers.compile_platform(ARM, folder)}
    compilers._logger.removeHandler(handler)
    assert not handler.buffer, "the compiler printed a warning"
    files["program"] = folder / "program"
    compile_program([*compilers.ZIG, "-target", ARM.target], files["program"])
    return files


@pytest.mark.slow
@has_arm_emulator
@pytest.mark.parametrize(
    ("variant", "processor"), [("neon", WITHOUT_BF16), ("neon-bf16", WITH_BF16)]
)
def test_kernels_for_arm_equal_scalar_code_in_emulator(arm, variant, processor):
    output = check([*arm_emulator(processor), str(arm["program"]), str(arm[variant])], 4)
    assert ("kind 2" in output) == (variant == "neon-bf16")


@pytest.mark.slow
@has_arm_emulator
def test_kernels_with_bf16_for_arm_stop_on_processor_without(arm):
    command = [*arm_emulator(WITHOUT_BF16), str(arm["program"]), str(arm["neon-bf16"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    # It is therefore important that such a processor does not state the feature.
    assert done.returncode != 0
    assert "Illegal instruction" in done.stderr


@pytest.mark.slow
@has_arm_emulator
@pytest.mark.parametrize(
    ("processor", "variants"), [(WITHOUT_BF16, ["neon"]), (WITH_BF16, ["neon-bf16", "neon"])]
)
def test_variants_for_arm_are_those_whose_features_the_processor_states(
    arm, tmp_path, monkeypatch, processor, variants
):
    source, program = tmp_path / "features.cpp", tmp_path / "features"
    source.write_text(SHOW_FEATURES, encoding="utf-8")
    compile_program([*compilers.ZIG, "-target", ARM.target], program, source)
    command = [*arm_emulator(processor), str(program), str(arm["processor"])]
    stated = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    monkeypatch.setattr(selection, "architecture", lambda: AARCH64)
    monkeypatch.setattr(selection, "processor_features", lambda: frozenset(stated.split()))
    assert [variant.name for variant in selection.executable_variants()] == variants


@pytest.mark.slow
@has_arm_emulator
@pytest.mark.skipif(not any(map(shutil.which, ARM_COMPILERS)), reason="no GCC for ARM")
def test_kernels_for_arm_of_gcc_equal_scalar_code_in_emulator(tmp_path):
    command = [next(filter(shutil.which, ARM_COMPILERS))]
    # The emulated system has no C++ library.
    flags = [*compilers.machine_flags(command, find_variant("neon-bf16")), "-static-libstdc++"]
    library = tmp_path / f"neon-bf16{library_suffix('linux')}"
    output = compilers.compile_library(
        command, compilers.kernel_sources(), [*flags, "-static-libgcc"], library, "linux"
    )
    assert library.is_file(), output
    compile_program([*command, "-static-libstdc++", "-static-libgcc"], tmp_path / "program")
    assert "kind 2" in check([*arm_emulator(WITH_BF16), str(tmp_path / "program"), str(library)], 4)
