"""Training on a full file system, and with a limit on the size of files."""

import os
import re
import subprocess
import sys

import pytest

from recurra.runs.checkpoint_store import CheckpointStore

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")

OPTIONS = [
    "--steps", "8", "--report-every", "2", "--hidden-size", "16", "--batch-size", "4",
    "--num-steps", "16", "--sample-length", "5", "--quiet", "--device", "cpu", "--threads", "1",
]  # fmt: skip


def recurra(*arguments, limit=None):
    shell = "" if limit is None else f"ulimit -f {limit}; "
    options = " ".join(map(str, arguments))
    done = subprocess.run(
        ["bash", "-c", f"{shell}exec {sys.executable} -m recurra {options}"],
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr
    assert done.stderr.count(b"\n") <= 1
    return done


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a tmpfs of a size in KiB, which is unmounted after the test."""
    mount_points = []

    def mount(kilobytes):
        mount_point = tmp_path / f"disk-{kilobytes}"
        mount_point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(mount_point)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            # Without the privilege to mount, no small disk can be made; other errors are failures.
            assert re.search("permission denied|superuser|not permitted", done.stderr), done.stderr
            pytest.skip("the process has no permission to mount a file system")
        mount_points.append(mount_point)
        return mount_point

    yield mount
    for mount_point in mount_points:
        subprocess.run(["umount", str(mount_point)], check=True)


@pytest.mark.slow
def test_train_full_disk_leaves_resumable_run(source, tmp_path, small_disk, crash):
    expected = tmp_path / "expected"
    assert recurra("train", source, "--out", expected, *OPTIONS).returncode == 0
    failed = 0
    for kilobytes in (16, 60, 100, 140):
        disk = small_disk(kilobytes)
        run = disk / "run"
        done = recurra("train", source, "--out", run, *OPTIONS)
        if done.returncode == 0:
            continue
        failed += 1
        assert done.returncode == 1
        assert b"No space left on device" in done.stderr
        # The message names a file of the run, not a temporary one.
        (named,) = re.findall(rb"No space left on device \((.*)\)", done.stderr)
        assert named.startswith(str(run).encode())
        assert b".tmp" not in named
        assert b".tokens-" not in named
        names = [p.name for p in disk.iterdir()]
        assert names in ([], ["run"])
        if not names:
            continue
        for name in (checkpoints := CheckpointStore(run / "checkpoints")).names():
            checkpoints.verify(name)
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert recurra("train", "--resume", run, "--quiet").returncode == 0
        assert crash.differences(expected, run) == []
        assert not [p for p in run.rglob(".*") if p.name != ".lock"]
    assert failed >= 2


@pytest.mark.slow
def test_train_file_size_limit_leaves_resumable_run(source, tmp_path, crash):
    expected = tmp_path / "expected"
    assert recurra("train", source, "--out", expected, *OPTIONS).returncode == 0
    state = next(expected.glob("checkpoints/*-final/state.safetensors"))
    run = tmp_path / "run"
    # Enough for the weights and for the first checkpoint, which has no optimizer state.
    limit = os.path.getsize(state) // 1024 - 8
    done = recurra("train", source, "--out", run, *OPTIONS, limit=limit)
    assert done.returncode == 1
    assert b"File too large" in done.stderr
    assert CheckpointStore(run / "checkpoints").names() == ["step-00000000"]
    assert recurra("train", "--resume", run, "--quiet").returncode == 0
    assert crash.differences(expected, run) == []
