"""Build of the kernels: once per machine, by one process, and optional without a compiler."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from recurra.cli.main import main
from recurra.errors import KernelError
from recurra.installation import install_command
from recurra.kernels import builder, compilers, library
from recurra.kernels.variants import PLATFORMS, find_variant

needs_compiler = pytest.mark.skipif(
    builder.reason_not_buildable() is not None, reason="no compiler"
)

LAYER = """
import logging, torch, recurra.nn
logging.basicConfig(format="%(message)s")
layer = recurra.nn.GRU(3, 4)
layer(torch.zeros(2, 1, 3)), layer(torch.zeros(2, 1, 3))
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Set RECURRA_CACHE to a directory that does not exist yet, and return it."""
    monkeypatch.setenv("RECURRA_CACHE", str(tmp_path / "cache"))
    for name in ("CXXFLAGS", "RECURRA_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Return a function that sets CXX to a shell script."""

    def make(script: str) -> Path:
        file = tmp_path / "compiler"
        file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(file))
        return file

    return make


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_build_missing_compiler_is_logged_once(cache, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    done = python(LAYER)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("without compiled kernels") == 1
    assert "/nowhere/c++" in done.stderr


def test_compiler_missing_is_replaced_by_ziglang(cache, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(compilers.importlib.util, "find_spec", lambda name: name == "ziglang")
    assert compilers.compiler() == [sys.executable, "-m", "ziglang", "c++"]


def test_build_missing_compiler_error_names_extra(cache, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(compilers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(KernelError, match=re.escape(install_command("compiler"))):
        library.load.__wrapped__()


def test_build_missing_compiler_error_lists_candidates(cache, monkeypatch, capsys):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(compilers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KernelError, match=r"g\+\+, c\+\+, clang\+\+, or CXX"):
        library.load.__wrapped__()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("case", ["hidden", "nonexistent", "read-only", "no home", "off"])
def test_doctor_and_training_state_same_reason_without_kernels(
    cache, tmp_path, monkeypatch, capsys, case
):
    if case == "hidden":
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    elif case == "nonexistent":
        monkeypatch.setenv("CXX", "/nowhere/c++ -O1")
    elif case == "read-only":
        cache.touch()
    elif case == "no home":
        monkeypatch.delenv("RECURRA_CACHE")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("RECURRA_KERNELS", "off")
    with pytest.raises(KernelError) as caught:
        library.load.__wrapped__()
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["kernels"] == f"unavailable: {caught.value}"
    assert "native once" not in findings["backends"]
    assert (case == "no home") == (str(caught.value) in findings["data"])
    assert not cache.is_dir()


@pytest.mark.slow
@needs_compiler
def test_build_compiler_with_arguments_in_cxx_is_used(cache, monkeypatch):
    monkeypatch.setenv("CXX", f"{shlex.join(compilers.compiler())} -DGIVEN_IN_CXX")
    path = builder.build()
    assert "-DGIVEN_IN_CXX" in path.with_name(builder.LOG).read_text("utf-8")


def test_build_failure_names_log_and_is_not_repeated(cache, compiler, capsys):
    file = compiler('echo tried >> "$0.log"; echo "unknown flag" >&2; exit 1')
    tries = Path(f"{file}.log")
    first = python(LAYER)
    assert "unknown flag" in builder.failed_log().read_text("utf-8")
    assert str(builder.failed_log()) in first.stderr
    attempts = len(tries.read_text().splitlines())
    second = python(LAYER)
    assert second.returncode == 0
    assert str(builder.failed_log()) in second.stderr
    assert len(tries.read_text().splitlines()) == attempts
    assert main(["kernels", "build"]) == 1
    assert str(builder.failed_log()) in capsys.readouterr().err
    assert len(tries.read_text().splitlines()) == 2 * attempts
    assert main(["doctor"]) == 0
    assert str(builder.failed_log()) in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("message", ["a.o: No space left on device", "error: NoSpaceLeft"])
def test_build_full_disk_is_named_and_repeated(cache, compiler, capsys, message):
    file = compiler(f'echo tried >> "$0.log"; echo "{message}" >&2; exit 1')
    tries = Path(f"{file}.log")
    first = python(LAYER)
    assert first.returncode == 0, first.stderr
    assert f"cannot build kernels in {builder.build_folder()}: No space left" in first.stderr
    attempts = len(tries.read_text().splitlines())
    assert python(LAYER).stderr == first.stderr
    assert len(tries.read_text().splitlines()) == 2 * attempts
    assert main(["doctor"]) == 0
    assert "built on first use" in capsys.readouterr().out


def test_build_temporary_files_of_compiler_are_beside_library(cache, compiler):
    compiler('echo "files in $TMPDIR, language $LC_ALL"; exit 1')
    with pytest.raises(KernelError):
        builder.build()
    said = builder.failed_log().read_text("utf-8")
    assert re.search(
        rf"^files in {re.escape(str(builder.build_folder()))}\S+, language C$", said, re.M
    )


def test_compile_platform_logs_what_compiler_prints(tmp_path, compiler, monkeypatch, caplog):
    file = compiler('echo "a warning" >&2; while [ "$1" != -o ]; do shift; done; touch "$2"')
    monkeypatch.setattr(compilers, "ZIG", (str(file),))
    libraries = [path.name for path in compilers.compile_platform(PLATFORMS[1], tmp_path)]
    assert libraries == ["processor.so", "neon-bf16.so", "neon.so"]
    assert [record.getMessage().split("\n")[:2] for record in caplog.records] == [
        [f"{name}:", "a warning"] for name in libraries
    ]


def test_build_is_skipped_if_kernels_are_switched_off(cache):
    done = python(LAYER, RECURRA_KERNELS="off")
    assert (done.returncode, done.stderr) == (0, "")
    assert not cache.exists()
    done = python(LAYER.replace("(3, 4)", "(3, 4, backend='native')"), RECURRA_KERNELS="off")
    assert "KernelError: " in done.stderr
    assert "switched off" in done.stderr


def test_train_without_requested_kernels_leaves_no_run(tmp_path):
    out = tmp_path / "run"
    command = ["train", "english-story", "--backend", "native", "--out", str(out)]
    program = f"from recurra.cli.main import main; raise SystemExit(main({command!r}))"
    done = python(program, RECURRA_KERNELS="no")
    assert done.returncode == 1
    assert "switched off" in done.stderr
    assert not out.exists()


@pytest.mark.slow
@needs_compiler
def test_build_by_two_processes_compiles_once(cache, compiler, capsys):
    real = shutil.which(compilers.COMPILERS[0]) or shlex.join(compilers.compiler())
    file = compiler(f'echo "$*" >> "$0.log"; exec {real} "$@"')
    processes = [
        subprocess.Popen([sys.executable, "-c", LAYER], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert "without compiled kernels" not in "".join(errors)
    sources = len(compilers.kernel_sources())
    assert len(Path(f"{file}.log").read_text().splitlines()) == sources + 1
    assert main(["kernels", "build"]) == 0
    assert capsys.readouterr().out.strip() == str(builder.built_library())
    assert main(["kernels", "clean"]) == 0
    assert capsys.readouterr().out.startswith("removed 1 ")
    assert builder.built_library() is None


def test_build_folder_depends_on_machine_flags_and_variant(cache, monkeypatch):
    builder._fingerprint.cache_clear()
    folders = {builder.build_folder(), builder.build_folder("avx2")}
    for name, value in [("_machine", lambda: "other"), ("_user_flags", lambda: ["-O0"])]:
        with monkeypatch.context() as patch:
            patch.setattr(builder, name, value)
            builder._fingerprint.cache_clear()
            folders.add(builder.build_folder())
    builder._fingerprint.cache_clear()
    assert len(folders) == 4


@pytest.mark.parametrize(
    ("command", "variant", "flags"),
    [
        (["g++"], "neon", []),
        (compilers.ZIG, "neon", []),
        (["g++"], "neon-bf16", ["-march=armv8.2-a+bf16"]),
        (["clang++"], "neon-bf16", ["-march=armv8.2-a+bf16"]),
        (compilers.ZIG, "neon-bf16", ["-march=generic+v8_2a+bf16"]),
        (["g++"], "avx2", ["-march=x86-64-v3"]),
        (["/opt/zig", "c++"], "avx2", ["-march=x86_64_v3"]),
    ],
)
def test_machine_flags_are_in_the_words_of_the_compiler(command, variant, flags):
    assert compilers.machine_flags(command, find_variant(variant)) == flags


def test_clean_removes_builds_of_all_versions_and_nothing_else(cache):
    kernels = builder.kernels_folder()
    old, own, other = (
        kernels / name for name in ("torch-2.13.0+cpu-0123456789abcdef", "avx2-" + 16 * "0", "mine")
    )
    for folder in (old, own, other):
        folder.mkdir(parents=True)
    assert builder.clean() == 2
    assert [path.name for path in kernels.iterdir()] == ["mine"]
