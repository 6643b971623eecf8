"""The scripts for machines and wheels: parts that fail, and wrong arguments."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
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
        [str(SCRIPTS / name), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def interpreter(tmp_path):
    """A function that creates a program: it prints its arguments, and fails for `bench`.

    It takes the place of an interpreter with torch, which reports this device.
    """

    def create(machine):
        file = tmp_path / "interpreter"
        file.write_text(
            f"""#!/bin/sh
case "$1" in -c) echo '{json.dumps(machine)}'; exit 0;; esac
echo "ran $*"
case "$*" in
  *bench) exit 3;;
  *"--minutes 1 "*) echo '{{"nats": 1.25}}'; echo 'saved in a directory' >&2;;
  *crash.py*) while [ "$1" != --json ]; do shift; done; echo '{{"kills": 2}}' >"$2";;
esac
""",
            "utf-8",
        )
        file.chmod(0o755)
        return str(file)

    return create


CPU = {"torch": "2.0", "processor": "a processor"}
GPU = {**CPU, "device": "cuda", "name": "a GPU"}
GPU_PARTS = ("tests", "resume", "table", "half", "one")


def results_of(folder):
    return json.loads((folder / "results.json").read_text("utf-8"))


def test_machine_failed_part_does_not_stop_the_others(tmp_path, interpreter):
    done = run("machine", "results", cwd=tmp_path, PYTHON=interpreter(CPU))
    assert done.returncode == 1
    assert done.stderr == "bench failed with exit status 3\n"
    written = {file.stem: file.read_text("utf-8") for file in (tmp_path / "results").glob("*.txt")}
    assert written.keys() == {"doctor", "tests", "bench", "threads", "contention"}
    assert written["bench"] == "ran -m recurra bench\n"
    assert f"--json {tmp_path / 'results' / 'threads.json'}" in written["threads"]
    found = results_of(tmp_path / "results")
    assert found["machine"].items() >= CPU.items()
    assert {n: p["status"] for n, p in found["parts"].items()} == {
        **dict.fromkeys(written, "passed"),
        "bench": "failed",
    }
    assert found["parts"]["bench"]["exit status"] == 3


def test_machine_named_parts_are_run_alone(tmp_path, interpreter):
    python = Path(interpreter(CPU)).relative_to(tmp_path)
    done = run("machine", "results", "contention", "doctor", cwd=tmp_path, PYTHON=f"./{python}")
    assert (done.returncode, done.stderr) == (0, "")
    assert list(results_of(tmp_path / "results")["parts"]) == ["doctor", "contention"]


def test_gpu_collects_the_results_of_all_parts(tmp_path, interpreter):
    done = run("gpu", "results", cwd=tmp_path, PYTHON=interpreter(GPU))
    assert (done.returncode, done.stderr) == (0, "")
    found = results_of(tmp_path / "results")
    assert list(found["parts"]) == ["doctor", *GPU_PARTS, "threads"]
    assert all(part["status"] == "passed" for part in found["parts"].values())
    assert found["parts"]["one"]["results"] == {"nats": 1.25}
    assert found["parts"]["resume"]["results"] == {"kills": 2}
    assert "--device cuda" in (tmp_path / "results" / "table.txt").read_text("utf-8")
    assert found["machine"].items() >= GPU.items()
    assert found["seconds"] < 60


@pytest.mark.parametrize(
    ("machine", "left_out", "reason"),
    [
        (CPU, GPU_PARTS, "torch found no GPU"),
        ({**GPU, "device": "mps"}, ("tests",), "it needs a device of type cuda, not mps"),
    ],
)
def test_gpu_parts_without_their_device_are_left_out(
    tmp_path, interpreter, machine, left_out, reason
):
    done = run("gpu", "results", cwd=tmp_path, PYTHON=interpreter(machine))
    assert (done.returncode, done.stderr) == (0, "")
    found = results_of(tmp_path / "results")["parts"]
    assert [n for n, part in found.items() if part["status"] == "left out"] == list(left_out)
    for name in left_out:
        assert found[name]["reason"] == reason
        assert f"== {name}: left out: {reason}" in done.stdout


def test_gpu_interpreter_without_torch_leaves_parts_out_with_reason(tmp_path):
    file = tmp_path / "interpreter"
    file.write_text("#!/bin/sh\necho 'No module named torch' >&2; exit 1\n", "utf-8")
    file.chmod(0o755)
    done = run("gpu", "results", "doctor", "table", cwd=tmp_path, PYTHON=str(file))
    assert done.returncode == 1
    assert "doctor failed with exit status 1" in done.stderr
    assert "cannot import recurra and torch: No module named torch" in done.stdout


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS.parent / "benchmarks"))
    return importlib.import_module("parts")


SLEEP = "import subprocess, sys; print('began', flush=True); subprocess.run(['sleep', '77'])"


def test_parts_time_limit_stops_the_part_and_its_children(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "DESCRIBE", "print('{}')")
    monkeypatch.setenv("PYTHON", sys.executable)
    chosen = (
        parts.Part("slow", ("-c", SLEEP), 1.0),
        parts.Part("next", ("-c", "print(1)"), 60),
    )
    assert parts.main("a script", chosen, [str(tmp_path / "results")], "") == 1
    assert "slow was stopped after 1 s" in capsys.readouterr().err
    found = results_of(tmp_path / "results")["parts"]
    assert [part["status"] for part in found.values()] == ["stopped", "passed"]
    assert found["slow"]["exit status"] is None
    assert (tmp_path / "results" / "slow.txt").read_text("utf-8") == "began\n"
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "sleep 77" not in running.stdout.splitlines()


def test_parts_together_run_at_the_same_time(parts, tmp_path, monkeypatch):
    # Each part waits for the file that the other one writes.
    wait = (
        "import pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.01)"
    )
    monkeypatch.setattr(parts, "DESCRIBE", "print('{}')")
    monkeypatch.setenv("PYTHON", sys.executable)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    chosen = (
        parts.Part("one", ("-c", wait, a, b), 60, together=True),
        parts.Part("two", ("-c", wait, b, a), 60, together=True),
    )
    assert parts.main("a script", chosen, [str(tmp_path / "results")], "") == 0


def test_gpu_limits_add_up_to_less_than_five_minutes(parts):
    script = importlib.machinery.SourceFileLoader("gpu_script", str(SCRIPTS / "gpu"))
    spec = importlib.util.spec_from_loader("gpu_script", script)
    module = importlib.util.module_from_spec(spec)
    script.exec_module(module)
    groups = parts._groups(list(module.parts("folder")))
    # Before the parts, the script describes the machine, which takes about ten seconds.
    assert sum(max(part.limit for part in group) for group in groups) <= 285


@pytest.mark.parametrize("script", ["machine", "gpu"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], " DIR [PART ...]"),
        (["--unknown"], " DIR [PART ...]"),
        (["results", "doctor", "benches"], "unknown part benches; the parts are doctor tests"),
        (["results", "doctor tests"], "unknown part doctor tests"),
        (["results", ""], "unknown part "),
        (["file/results"], "file/results is not a directory and cannot be created"),
    ],
)
def test_machine_wrong_arguments_are_an_error(tmp_path, script, arguments, message):
    (tmp_path / "file").touch()
    done = run(script, *arguments, cwd=tmp_path)
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


@pytest.mark.parametrize("script", ["gpu", "machine"])
def test_script_help_describes_the_parts(tmp_path, script):
    done = run(script, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: scripts/{script} DIR [PART ...]" in done.stdout
    assert "doctor" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["missing.whl"], ["one.whl", "other.whl"]])
def test_test_wheel_wrong_arguments_are_an_error(tmp_path, arguments):
    done = run("test-wheel", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: scripts/test-wheel WHEEL" in done.stderr
