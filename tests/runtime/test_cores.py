"""The default number of threads: torch's number, the chosen one, torchrun, and real processes."""

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import recurra
from recurra.cli.main import main
from recurra.errors import ConfigError
from recurra.kernels import library
from recurra.runtime import cores
from recurra.runtime.cores import describe_processors, limit
from recurra.runtime.devices import num_threads
from recurra.runtime.processors import Processors

LAPTOP = Processors(8, 8, cores=4, nodes=(4,))
TWO_SOCKETS = Processors(64, 64, cores=32, nodes=(16, 16))
ONE_SOCKET = Processors(64, 32, cores=16, nodes=(16,))

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="affinity masks and /proc")


@pytest.mark.parametrize(
    ("processors", "processes", "expected"),
    [
        (LAPTOP, 1, 4),
        (TWO_SOCKETS, 1, 16),
        (Processors(64, 64, 32, nodes=(16, 16), quota=8.0), 1, 8),
        (Processors(8, 8, 4, nodes=(4,), quota=1.5), 1, 1),
        (Processors(8, 8, 4, nodes=(4,), quota=0.5), 1, 1),
        (Processors(8, 8, 4, nodes=(4,), quota=3.0), 1, 3),
        (Processors(8, 8, 4, nodes=(4,), quota=16.0), 1, 4),
        (Processors(8, 8, 4), 1, 4),
        # The processes of torchrun share the cores and the quota, also across nodes.
        (LAPTOP, 2, 2),
        (LAPTOP, 3, 1),
        (LAPTOP, 8, 1),
        (TWO_SOCKETS, 2, 16),
        (TWO_SOCKETS, 4, 8),
        (Processors(64, 64, 32, nodes=(16, 16), quota=6.0), 2, 3),
    ],
)
def test_limit_follows_from_cores_quota_and_processes(processors, processes, expected):
    assert limit(processors, processes).threads == expected


def test_limit_processes_bound_to_their_nodes_use_them_completely():
    assert limit(ONE_SOCKET, 2, launcher=TWO_SOCKETS).threads == 16
    assert limit(ONE_SOCKET, 4, launcher=TWO_SOCKETS).threads == 8
    # torchrun itself is bound to one node, which its processes share.
    assert limit(ONE_SOCKET, 2, launcher=ONE_SOCKET).threads == 8


@pytest.fixture
def laptop(monkeypatch):
    """Let this process have the cores of a laptop, and torch use its eight hyper-threads."""
    monkeypatch.setattr(cores, "current_limit", lambda: limit(LAPTOP))
    torch.set_num_threads(8)


def test_threads_default_is_cores_and_at_most_number_of_torch(laptop):
    assert library.threads() == cores.threads() == 4
    torch.set_num_threads(3)
    assert library.threads() == cores.threads() == 3


@pytest.mark.parametrize("count", [1, 3, 16])
def test_num_threads_explicit_count_decides_and_is_restored(laptop, count):
    with num_threads(count):
        assert library.threads() == torch.get_num_threads() == count
        with num_threads(None):  # as in a comparison: the inner block keeps the number
            assert library.threads() == torch.get_num_threads() == count
    assert torch.get_num_threads() == 8
    assert library.threads() == 4


def test_num_threads_none_lets_torch_use_the_default_and_restores(laptop):
    def work():
        with num_threads(None):
            assert torch.get_num_threads() == library.threads() == 4
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert torch.get_num_threads() == 8


def test_num_threads_counts_for_its_own_thread_only(laptop):
    found = []
    with num_threads(2):
        other = threading.Thread(target=lambda: found.append(cores._choice.count))
        other.start()
        other.join()
    assert found == [None]


def test_threads_torchrun_variable_of_one_thread_is_not_a_choice(monkeypatch):
    monkeypatch.setattr(cores, "current_limit", lambda: limit(TWO_SOCKETS, 4))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    assert cores.threads() == 8
    # One thread is a choice in a worker of a data loader, and without torchrun's variable.
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing, "parent_process", lambda: object())
        assert cores.threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores.threads() == 1


def test_detected_limit_invalid_local_world_size_is_reported(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "two")
    cores.detect_again()
    with pytest.raises(ConfigError, match=r"LOCAL_WORLD_SIZE.*two"):
        cores._detected_limit()


def test_describe_names_each_reason(monkeypatch):
    words = describe_processors(Processors(64, 32, 16, nodes=(8, 8), quota=2.5))
    assert words == (
        "16 cores with 32 hyper-threads, affinity mask with 32 of 64 logical CPUs, CPU quota 2.5,"
        " 8 cores in one of 2 NUMA nodes"
    )
    assert describe_processors(Processors(1, 1, 1)) == "1 core, no CPU quota, 1 NUMA node"
    hybrid = Processors(24, 24, 8, slower=8, nodes=(8,))
    assert describe_processors(hybrid).startswith("8 performance cores, 8 slower cores not counted")
    monkeypatch.setattr(cores, "current_limit", lambda: limit(LAPTOP, 2))
    torch.set_num_threads(3)
    assert cores.describe().startswith("2: 4 cores with 8 hyper-threads")
    assert cores.describe().endswith("shared by 2 processes of torchrun")
    monkeypatch.setattr(cores, "current_limit", lambda: limit(LAPTOP))
    assert cores.describe().endswith("torch uses 3 threads")
    with num_threads(6):
        assert cores.describe().startswith("6: set explicitly; 4 cores")


@pytest.fixture
def run(source):
    """A function that trains a small model and writes its run to a directory."""

    def train(folder, **options):
        return recurra.train(source, out=folder, hidden_size=8, num_steps=8, **options)

    return train


def test_train_logs_number_of_threads_once_if_it_is_not_that_of_torch(
    laptop, monkeypatch, caplog, run, tmp_path
):
    monkeypatch.setattr(cores, "_logged", set())
    caplog.set_level(logging.INFO, "recurra")
    run(tmp_path / "chosen", steps=1, threads=1)
    assert "CPU threads" not in caplog.text
    run(tmp_path / "first", steps=1)
    run(tmp_path / "second", steps=1)
    logged = [record.message for record in caplog.records if "CPU threads" in record.message]
    assert logged == [
        "CPU threads: 4: 4 cores with 8 hyper-threads, no CPU quota, 1 NUMA node;"
        " set `threads` to change it"
    ]
    torch.set_num_threads(2)
    caplog.clear()
    run(tmp_path / "third", steps=1)
    assert "CPU threads" not in caplog.text


def test_train_records_number_of_threads_of_kernels(laptop, run, tmp_path):
    run(tmp_path / "run", steps=1)
    sessions = list((tmp_path / "run" / "checkpoints").glob("*/session.json"))
    assert sessions
    assert all('"threads": 4' in session.read_text() for session in sessions)


def test_doctor_states_number_of_threads_and_reasons(laptop, capsys):
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["threads"] == (
        "4: 4 cores with 8 hyper-threads, no CPU quota, 1 NUMA node; --threads changes it"
    )


REPORT = """
import json, os, torch
from recurra.runtime import cores
from recurra.runtime.devices import num_threads
before = cores.threads()
with num_threads(None):
    inside = torch.get_num_threads()
with num_threads(5):
    chosen = cores.threads(), torch.get_num_threads()
report = json.dumps([before, inside, *chosen, os.environ.get("RANK"), cores.describe()])
os.write(1, report.encode() + b"\\n")  # One call, so that the lines of two processes do not mix.
"""


def report(*command, **environment):
    """Run `REPORT` in a new process; return what each process printed."""
    outer = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        command, env=outer | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_linux
def test_threads_process_bound_to_one_cpu_is_one():
    cpu = min(os.sched_getaffinity(0))
    bound = f"import os; os.sched_setaffinity(0, {{{cpu}}})\n{REPORT}"
    ((*counts, _, text),) = report(sys.executable, "-c", bound)
    assert counts == [1, 1, 5, 5]
    if os.cpu_count() > 1:
        assert f"affinity mask with 1 of {os.cpu_count()} logical CPUs" in text


def test_threads_environment_variable_lowers_number():
    ((*counts, _, _),) = report(sys.executable, "-c", REPORT, OMP_NUM_THREADS="1")
    assert counts == [1, 1, 5, 5]


@pytest.mark.torchrun
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torchrun")
def test_threads_torchrun_processes_share_cores(tmp_path):
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    (alone,) = report(sys.executable, "-c", REPORT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    found = report(*torchrun, "--nproc-per-node", "2", str(script))
    assert sorted(rank for *_, rank, _ in found) == ["0", "1"]
    share = max(alone[0] // 2, 1)
    for *counts, _, text in found:
        assert counts == [share, share, 5, 5]
        assert "shared by 2 processes of torchrun" in text


def _writable_group():
    """Return the directory of a new control group with a CPU quota, or None if not permitted."""
    folder = Path("/sys/fs/cgroup/cpu", f"recurra-test-{os.getpid()}")
    if not folder.parent.is_dir():
        folder = Path("/sys/fs/cgroup", folder.name)
    with suppress(OSError):
        folder.mkdir()
        if (folder / "cpu.cfs_quota_us").exists() or (folder / "cpu.max").exists():
            return folder
        folder.rmdir()
    return None


@pytest.mark.slow
@needs_linux
@pytest.mark.parametrize(("quota", "expected"), [(1.5, 1), (0.4, 1), (3.0, None)])
def test_threads_real_cpu_quota_is_rounded_down(quota, expected):
    group = _writable_group()
    if group is None:
        # Only root, or the owner of a delegated group, can set a quota. The fabricated quotas of
        # test_processors.py are tested everywhere.
        pytest.skip("control groups cannot be created here")
    try:
        microseconds = str(int(quota * 100_000))
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{microseconds} 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text(microseconds)
        join = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n"
        (alone,) = report(sys.executable, "-c", REPORT)
        ((count, *_, text),) = report(sys.executable, "-c", join + REPORT)
    finally:
        group.rmdir()
    assert count == (expected or min(alone[0], int(quota)))
    assert f"CPU quota {quota:.4g}" in text
