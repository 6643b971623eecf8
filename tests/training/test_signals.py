"""Signals to a training process: it finishes the step, saves, and exits with 128 + signal."""

import os
import select
import signal
import subprocess
import sys
import time

import pytest

from recurra.runs.checkpoint_store import CheckpointStore

LONG = [
    "--steps", "1000000", "--hidden-size", "24", "--batch-size", "4", "--num-steps", "16",
    "--report-every", "50", "--device", "cpu", "--threads", "1",
]  # fmt: skip
SECONDS_TO_STOP = 5.0

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


class Training:
    """A process of `recurra train` that has written its first metrics."""

    def __init__(self, source, folder, *options, prefix=()):
        command = [sys.executable, "-m", "recurra", "train", str(source), "--out", str(folder)]
        self.process = subprocess.Popen(
            [*prefix, *command, *LONG, *options], stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.folder = folder
        deadline = time.monotonic() + 60
        while not (folder / "metrics.jsonl").is_file():
            # Another process creates the file, so the constructor polls.
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def send(self, *signals):
        started = time.monotonic()
        for signum in signals:
            self.process.send_signal(signum)
        _, err = self.process.communicate(timeout=60)
        assert time.monotonic() - started < SECONDS_TO_STOP
        assert b"Traceback" not in err, err
        return self.process.returncode, err.decode()

    def has_intact_checkpoints(self):
        checkpoints = CheckpointStore(self.folder / "checkpoints")
        names = checkpoints.names()
        for name in names:
            checkpoints.verify(name)
        return bool(names) and not list((self.folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGTERM], 143),
        ([signal.SIGHUP], 129),
        ([signal.SIGINT] * 30, 130),
        ([signal.SIGTERM] * 30, 143),
    ],
)
def test_train_signal_saves_checkpoint_and_sets_exit_code(source, tmp_path, signals, code):
    training = Training(source, tmp_path / "run")
    returned, err = training.send(*signals)
    assert returned == code
    assert "saved" in err
    assert f"--resume {tmp_path / 'run'}" in err
    assert training.has_intact_checkpoints()


def test_train_signal_with_closed_stderr_keeps_exit_code(source, tmp_path):
    training = Training(source, tmp_path / "run")
    training.process.stderr.close()
    training.process.send_signal(signal.SIGTERM)
    assert training.process.wait(timeout=60) == 143
    training.process.stdout.close()
    assert training.has_intact_checkpoints()


def test_train_ignored_signal_stays_ignored(source, tmp_path):
    training = Training(source, tmp_path / "run", prefix=["nohup"])
    training.process.send_signal(signal.SIGHUP)
    metrics = tmp_path / "run" / "metrics.jsonl"
    num_reports = len(metrics.read_bytes().splitlines())
    deadline = time.monotonic() + 60
    # A handled signal would end the run at the next update; reports are fifty updates apart.
    while len(metrics.read_bytes().splitlines()) < num_reports + 3:
        assert training.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert training.send(signal.SIGTERM)[0] == 143


def test_train_signal_before_start_leaves_no_files(tmp_path):
    folder = tmp_path / "runs" / "new"
    process = subprocess.Popen(
        [sys.executable, "-m", "recurra", "train", "-", "--out", str(folder)],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not folder.parent.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 143
    assert err == b"recurra: interrupted\n"
    assert not folder.parent.exists()


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_train_closed_terminal_saves_checkpoint(source, tmp_path, quiet):
    """The kernel sends SIGHUP, and every later write to the terminal fails."""
    pty = pytest.importorskip("pty")
    folder = tmp_path / "run"
    command = ["train", str(source), "--out", str(folder), *LONG, *quiet]
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "recurra", *command])
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").is_file():
        assert time.monotonic() < deadline
        # The training blocks when the terminal's buffer is full, so the test reads it.
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    newest = CheckpointStore(folder / "checkpoints").names()[-1]
    assert newest != "step-00000000"
    CheckpointStore(folder / "checkpoints").verify(newest)
