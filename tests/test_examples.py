"""The examples for clusters: the commands that they run, with replaced Slurm and torchrun."""

import os
import re
import shutil
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Replace torchrun and the programs of Slurm by ones that append their arguments to a file."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    for name, body in {
        "srun": f'echo "srun $*" >>{calls}; [ -z "${{SLOW:-}}" ] || sleep 0.5',
        "torchrun": f'echo "torchrun $*" >>{calls}',
        "scontrol": f'echo "scontrol $*" >>{calls}; [ "$1" != show ] || printf "n1\\nn2\\n"',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n", "utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    slurm = {"JOB_NODELIST": "n[1-2]", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "4"}
    for name, value in {**slurm, "JOB_ID": "77", "CPUS_PER_TASK": "8"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)

    def lines():
        return calls.read_text("utf-8").splitlines() if calls.exists() else []

    return lines


def last_part(line):
    return line.partition(" -m recurra ")[2]


def test_slurm_example_starts_a_run_and_then_continues_it(tmp_path, programs):
    command = ["bash", str(EXAMPLES / "slurm.sh"), "book.txt", str(tmp_path / "run")]
    subprocess.run(command, check=True, timeout=20)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    subprocess.run(command, check=True, timeout=20)
    starts = [line for line in programs() if line.startswith("srun")]
    assert "--nnodes 2 --nproc-per-node 4" in starts[0]
    assert "--rdzv-endpoint n1:29500 --rdzv-id 77" in starts[0]
    assert [last_part(line) for line in starts] == [
        f"train book.txt --out {tmp_path / 'run'}",
        f"train --resume {tmp_path / 'run'}",
    ]


def test_slurm_example_time_limit_requeues_the_job(tmp_path, programs, monkeypatch):
    monkeypatch.setenv("SLOW", "1")
    command = ["bash", str(EXAMPLES / "slurm.sh"), "book.txt", str(tmp_path / "run")]
    with subprocess.Popen(command) as job:
        deadline = time.monotonic() + 20
        while not any(line.startswith("srun") for line in programs()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=20) == 0
    assert programs()[-1] == "scontrol requeue 77"


def test_slurm_example_failed_training_is_a_failed_job(tmp_path, programs):
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\nexit 3\n", "utf-8")
    command = ["bash", str(EXAMPLES / "slurm.sh"), "book.txt", str(tmp_path / "run")]
    assert subprocess.run(command, timeout=20, check=False).returncode == 3


def test_kubernetes_example_starts_a_run_and_then_continues_it(tmp_path, programs):
    text = (EXAMPLES / "pytorchjob.yaml").read_text("utf-8")
    (script,) = re.findall(r"- \|\n((?: {18}.*\n)+)", text)
    script = textwrap.dedent(script).replace("/data/", f"{tmp_path}/")
    subprocess.run(["sh", "-ec", script], check=True, timeout=20)
    (tmp_path / "runs" / "book").mkdir(parents=True)
    (tmp_path / "runs" / "book" / "config.json").touch()
    subprocess.run(["sh", "-ec", script], check=True, timeout=20)
    assert [last_part(line) for line in programs()] == [
        f"train {tmp_path}/book.txt --out {tmp_path}/runs/book",
        f"train --resume {tmp_path}/runs/book",
    ]
