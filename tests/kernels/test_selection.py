"""Choice of the kernels by RECURRA_KERNELS, the processor and the contents of a wheel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recurra.cli.main import main
from recurra.errors import ConfigError, KernelError
from recurra.kernels import builder, compilers, library, selection
from recurra.kernels.variants import (
    AARCH64,
    NATIVE,
    VARIANTS,
    X86_64,
    library_suffix,
    variants_of,
)

CPUINFO = Path("/proc/cpuinfo")
AVX2 = next(v.features for v in VARIANTS if v.name == "avx2")


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Return a function that puts libraries of x86-64 into the package, on a machine with AVX2."""
    monkeypatch.setattr(selection, "architecture", lambda: X86_64)
    monkeypatch.setattr(selection, "processor_features", lambda: AVX2)
    monkeypatch.setattr(selection, "PACKAGED", tmp_path / "bin")
    monkeypatch.setenv("RECURRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECURRA_KERNELS", raising=False)

    def make(*names):
        (tmp_path / "bin").mkdir()
        for name in names:
            (tmp_path / "bin" / f"{name}{library_suffix()}").touch()
        return tmp_path / "bin"

    return make


def test_select_takes_fastest_variant_that_machine_executes(wheel):
    folder = wheel("amx", "avx512", "avx2", "sse4")
    selected = selection.select()
    assert (selected.variant, selected.origin) == ("avx2", "from the wheel")
    assert selected.path == folder / f"avx2{library_suffix()}"


def test_select_builds_for_machine_that_executes_no_variant(wheel, monkeypatch):
    wheel("amx", "avx512", "avx2", "sse4")
    monkeypatch.setattr(selection, "processor_features", frozenset)
    assert selection.select() == selection.Selection(NATIVE, None)


def test_select_builds_for_machine_without_wheel(wheel):
    selected = selection.select()
    assert (selected.variant, selected.path, selected.origin) == (NATIVE, None, "built here")


@pytest.mark.parametrize(
    ("value", "variant"),
    [("sse4", "sse4"), ("SSE4", "sse4"), ("native", NATIVE), ("on", "avx2"), ("", "avx2")],
)
def test_select_takes_variant_of_environment(wheel, monkeypatch, value, variant):
    wheel("amx", "avx2", "sse4")
    monkeypatch.setenv("RECURRA_KERNELS", value)
    selected = selection.select()
    assert selected.variant == variant
    assert (selected.path is None) == (variant == NATIVE)


@pytest.mark.parametrize("value", ["off", "0", "No", "FALSE"])
def test_select_switched_off_raises(wheel, monkeypatch, value):
    wheel("avx2")
    monkeypatch.setenv("RECURRA_KERNELS", value)
    with pytest.raises(KernelError, match="switched off"):
        selection.select()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("avx3", "choices are off, native, amx, avx512-bf16, avx512, avx2, sse4"),
        ("avx512", "lacks avx512bw.*choices here are off, native, avx2, sse4"),
        ("neon", "choices are off, native, amx"),
    ],
)
def test_select_variant_that_does_not_exist_here_raises(wheel, monkeypatch, capsys, value, message):
    wheel("amx", "avx512", "avx2", "sse4")
    monkeypatch.setenv("RECURRA_KERNELS", value)
    with pytest.raises(ConfigError, match=message):
        selection.select()
    with pytest.raises(ConfigError, match=message):
        library.load.__wrapped__()
    assert main(["kernels", "build"]) == 2
    assert value in capsys.readouterr().err
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert "unavailable: " in report
    assert value in report


@pytest.mark.parametrize(("features", "variant"), [((), "neon"), (("bf16",), "neon-bf16")])
def test_select_takes_bf16_of_arm_only_if_processor_has_it(wheel, monkeypatch, features, variant):
    wheel("neon-bf16", "neon")
    monkeypatch.setattr(selection, "architecture", lambda: AARCH64)
    monkeypatch.setattr(selection, "processor_features", lambda: frozenset(features))
    assert selection.select().variant == variant
    monkeypatch.setenv("RECURRA_KERNELS", "neon-bf16")
    if features:
        assert selection.select().variant == "neon-bf16"
    else:
        with pytest.raises(ConfigError, match=r"lacks bf16; .* off, native, neon$"):
            selection.select()


def test_kernels_build_prints_library_of_wheel(wheel, capsys):
    folder = wheel("avx2")
    assert main(["kernels", "build"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / f"avx2{library_suffix()}")
    assert not builder.kernels_folder().exists()


def test_doctor_with_kernels_requires_no_compiler(wheel, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert main(["doctor"]) == 0
    assert "/nowhere/c++, is not installed; required" in capsys.readouterr().out
    wheel("avx2")
    monkeypatch.setattr(library, "describe", lambda: "avx2")
    assert main(["doctor"]) == 0
    assert "compiler     none, not required" in capsys.readouterr().out


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_variants_are_ordered_and_described_by_known_features(variant):
    faster = variants_of(variant.architecture)
    faster = faster[: faster.index(variant)]
    assert all(other.features > variant.features for other in faster)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_variant_features_are_those_that_the_processor_states(variant):
    source = compilers.PROCESSOR_SOURCE.read_text("utf-8")
    stated = set(re.findall(r'add\("([^"]+)"', source))
    assert variant.features <= stated


@pytest.mark.skipif(not CPUINFO.is_file(), reason="no /proc/cpuinfo")
@pytest.mark.skipif(builder.reason_not_buildable() is not None, reason="no compiler")
def test_processor_features_are_those_of_the_system():
    lines = CPUINFO.read_text("utf-8").splitlines()
    flags = {flag.replace("_", "") for line in lines if ":" in line for flag in line.split()}
    names = {"lzcnt": "abm", "amx-tile": "amxtile", "amx-bf16": "amxbf16", "sse4.1": "sse41"}
    names |= {"sse4.2": "sse42"}
    stated = re.findall(r'add\("([^"]+)"', compilers.PROCESSOR_SOURCE.read_text("utf-8"))
    expected = {name for name in stated if names.get(name, name) in flags}
    assert selection.processor_features() == expected
