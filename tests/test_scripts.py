"""The scripts for machines and wheels: parts that fail, and wrong arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def run(name: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(SCRIPTS / name), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def interpreter(tmp_path):
    """Create a program that prints its arguments, fails for `bench`, and finds no GPU."""
    file = tmp_path / "interpreter"
    file.write_text(
        '#!/bin/sh\necho "ran $*"\ncase "$*" in *bench) exit 3;; -c*) exit 1;; esac\n', "utf-8"
    )
    file.chmod(0o755)
    return file


def test_machine_failed_part_does_not_stop_the_others(tmp_path, interpreter):
    done = run("machine", "results", cwd=tmp_path, PYTHON="./interpreter")
    assert done.returncode == 1
    assert done.stderr == "bench failed with exit status 3\n"
    assert "No CUDA GPU was found" in done.stdout
    written = {file.stem: file.read_text("utf-8") for file in (tmp_path / "results").iterdir()}
    assert written.keys() == {"doctor", "tests", "bench", "threads", "contention"}
    assert written["bench"] == "ran -m recurra bench\n"
    assert f"--json {tmp_path / 'results' / 'threads.json'}" in written["threads"]


def test_machine_named_parts_are_run_alone(tmp_path, interpreter):
    done = run("machine", "results", "contention", "doctor", cwd=tmp_path, PYTHON=str(interpreter))
    assert (done.returncode, done.stderr) == (0, "")
    assert {file.stem for file in (tmp_path / "results").iterdir()} == {"doctor", "contention"}
    assert "CUDA" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: scripts/machine DIR [PART ...]"),
        (["--help"], "usage: scripts/machine DIR [PART ...]"),
        (["results", "doctor", "benches"], "unknown part benches; the parts are doctor tests"),
        (["results", "doctor tests"], "unknown part doctor tests"),
        (["results", ""], "unknown part "),
        (["interpreter/results"], "interpreter"),
    ],
)
def test_machine_wrong_arguments_are_an_error(tmp_path, interpreter, arguments, message):
    done = run("machine", *arguments, cwd=tmp_path, PYTHON=str(interpreter))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not (tmp_path / "results").exists()


def test_machine_missing_interpreter_is_an_error(tmp_path):
    done = run("machine", "results", cwd=tmp_path, PYTHON="/nowhere/python")
    assert (done.returncode, done.stdout) == (2, "")
    assert "/nowhere/python was not found" in done.stderr


def test_build_wheels_unknown_platform_is_an_error(tmp_path):
    done = run("build-wheels", "linux-x86_64", "linux-x64", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown platform linux-x64; choose from linux-x86_64 linux-aarch64" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["missing.whl"], ["one.whl", "other.whl"]])
def test_test_wheel_wrong_arguments_are_an_error(tmp_path, arguments):
    done = run("test-wheel", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: scripts/test-wheel WHEEL" in done.stderr
