"""The lock of a run directory, and how a new run takes its place."""

import gc
import os
import stat
import subprocess
import sys
from contextlib import ExitStack

import pytest

from recurra import api
from recurra.errors import RunError
from recurra.report.progress import Progress
from recurra.runs.directory import RunDirectory
from recurra.runs.provenance import Provenance
from recurra.runs.staging import staged_run
from recurra.runtime.clock import Clock
from recurra.training import run as run_module


def resume(folder):
    run_module.resume_run(folder, Progress(), Clock())


def test_run_directory_lock_rejects_second_training(run, tmp_path):
    run(tmp_path / "run", steps=2)
    with RunDirectory(tmp_path / "run").locked():
        with pytest.raises(RunError, match="in use"):
            resume(tmp_path / "run")
        with pytest.raises(RunError, match="in use"):
            run(tmp_path / "run", force=True, steps=1)
    resume(tmp_path / "run")


def test_run_directory_lock_is_released_by_dead_process(run, tmp_path):
    run(tmp_path / "run", steps=2)
    program = (
        "import sys, time; from recurra.runs.directory import RunDirectory\n"
        "with RunDirectory(sys.argv[1]).locked():\n"
        # The process is killed below. If the test fails before, it ends by itself.
        "    print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run")], stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(RunError, match="in use"):
            resume(tmp_path / "run")
        holder.kill()
    resume(tmp_path / "run")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no POSIX modes")
@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)]
)
def test_train_file_modes_follow_umask(run, tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        run(tmp_path / "run", steps=4, report_every=2)
    finally:
        os.umask(before)
    for path in (tmp_path / "run", *(tmp_path / "run").rglob("*")):
        wanted = folder if path.is_dir() else file
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_train_removes_abandoned_staging_directories(run, tmp_path):
    abandoned, busy = tmp_path / ".run-abcdefgh.tmp", tmp_path / ".run-a_345678.tmp"
    # Run `run-2`, moved aside when its process was killed.
    other = tmp_path / ".run-2.old.tmp"
    for folder in (abandoned, busy, other):
        folder.mkdir()
        (folder / ".lock").touch()
    (tmp_path / ".run-mine").mkdir()
    with RunDirectory(busy).locked():
        run(tmp_path / "run", steps=1)
    assert not abandoned.exists()
    assert busy.exists()
    assert other.exists()
    assert (tmp_path / ".run-mine").exists()


def test_train_restores_run_moved_aside_by_killed_process(run, tmp_path):
    run(tmp_path / "run", steps=1)
    (tmp_path / "run").rename(tmp_path / ".run.old.tmp")
    with pytest.raises(RunError, match="--force"):
        run(tmp_path / "run", steps=2)
    assert not (tmp_path / ".run.old.tmp").exists()
    api.load(tmp_path / "run")


def test_train_new_run_stays_locked_until_training_starts(run, tmp_path, monkeypatch):
    lock = run_module._locked

    def checked(directory, processes):
        gc.collect()
        with pytest.raises(RunError, match="in use"), RunDirectory(directory.path).locked():
            pass
        return lock(directory, processes)

    monkeypatch.setattr(run_module, "_locked", checked)
    run(tmp_path / "run", steps=2)


def test_staged_run_refuses_run_that_began_to_train_meanwhile(tmp_path, run):
    directory, other = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")

    def replace_run():
        with staged_run(directory, force=True) as staging:
            run(tmp_path / "run", steps=2)
            stack.enter_context(other.locked())
            staging.write_config(other.read_config(), Provenance())

    with ExitStack() as stack, pytest.raises(RunError, match="is in use"):
        replace_run()
    assert other.read_config().training.steps == 2
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]
