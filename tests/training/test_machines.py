"""Training on two machines, one of which loses its network: two network namespaces, with gloo."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

OPTIONS = [
    "--steps", "160", "--num-layers", "2", "--dropout", "0.2", "--hidden-size", "32",
    "--batch-size", "9", "--num-steps", "16", "--report-every", "20", "--checkpoint-every", "8",
    "--sample-length", "10", "--threads", "1", "--device", "cpu",
]  # fmt: skip
ADDRESSES = ("10.99.0.1", "10.99.0.2")
CUT_AFTER = "step-00000040"
LOST_AFTER = 2


def missing() -> str | None:
    """Return why network namespaces cannot be used here, or None."""
    if not torch.distributed.is_gloo_available():
        return "this torch has no gloo"
    if shutil.which("ip") is None:
        return "the program ip (package iproute2) is not installed"
    if os.geteuid() != 0:
        return "only root may create network namespaces"
    name, link = f"recurra-{os.getpid()}", f"rec{os.getpid()}"
    attempts = (
        ["ip", "netns", "add", name],
        ["ip", "link", "add", link, "type", "veth", "peer", "name", f"{link}p"],
    )
    made = [subprocess.run(a, capture_output=True, check=False).returncode == 0 for a in attempts]
    subprocess.run(["ip", "link", "del", link], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None if all(made) else "this container may not create network namespaces"


REASON = missing() if sys.platform == "linux" else "network namespaces exist on Linux only"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.torchrun,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=20, capture_output=True)


class Machines:
    """Two network namespaces that are connected by a pair of virtual Ethernet devices."""

    def __init__(self) -> None:
        self.names = [f"recurra-{os.getpid()}-{number}" for number in (0, 1)]
        self.links = [f"rec{os.getpid()}{letter}" for letter in "ab"]
        self.jobs: list[subprocess.Popen[bytes]] = []

    def connect(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.links[0], "type", "veth", "peer", "name", self.links[1])
        for name, link, address in zip(self.names, self.links, ADDRESSES, strict=True):
            ip("link", "set", link, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", link, "up")

    def set_link(self, state: str) -> None:
        """Disconnect (down) or connect (up) the second machine."""
        ip("-n", self.names[1], "link", "set", self.links[1], state)

    def start(self, port: int, restarts: int, *arguments: object, elastic: bool = False) -> None:
        """Start torchrun on both machines, with one process each."""
        environment = {
            **{k: v for k, v in os.environ.items() if k != "GLOO_SOCKET_IFNAME"},
            "RECURRA_LOST_AFTER": str(LOST_AFTER),
        }
        self.jobs = []
        for number, name in enumerate(self.names):
            if elastic:
                where = [
                    "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:{port}",
                    "--rdzv-id", "a-job", "--rdzv-conf", f"is_host={1 - number}",
                    "--local-addr", ADDRESSES[number],
                ]  # fmt: skip
            else:
                where = [
                    "--node-rank", str(number), "--master-addr", ADDRESSES[0],
                    "--master-port", str(port),
                ]  # fmt: skip
            command = [
                "ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run",
                "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", str(restarts), *where,
                "-m", "recurra", "train", *map(str, arguments),
            ]  # fmt: skip
            job = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=environment,
            )
            self.jobs.append(job)

    def finish(self, seconds: float = 120.0) -> tuple[list[int], list[str]]:
        """Wait for both, and return their exit statuses and messages."""
        messages = [job.communicate(timeout=seconds)[1].decode() for job in self.jobs]
        return [job.returncode for job in self.jobs], messages

    def kill_training(self, number: int) -> None:
        """Kill the training process of a machine, but not its torchrun."""
        command = ["ip", "netns", "pids", self.names[number]]
        for pid in map(int, subprocess.check_output(command, timeout=20).split()):
            if b"LOCAL_RANK=0" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                return
        raise AssertionError("no training process was found")

    def remove(self) -> None:
        for job in self.jobs:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
                job.communicate()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def machines():
    machines = Machines()
    try:
        machines.connect()
        yield machines
    finally:
        machines.remove()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("the cat sat on the mat and the dog sat on the log. " * 40, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def uninterrupted(machines, text, tmp_path_factory):
    """Return the directory of an uninterrupted run on two machines."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    machines.start(29511, 0, text, "--out", folder, *OPTIONS)
    statuses, messages = machines.finish()
    assert statuses == [0, 0], messages
    return folder


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        # Another process creates the file, so the test polls.
        assert time.monotonic() < deadline
        time.sleep(0.005)


def loss_curve(folder):
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [(m["step"], m["train_nats"], m["val_nats"]) for m in map(json.loads, lines)]


def test_train_machine_cut_off_is_restarted_to_the_same_result(
    machines, text, uninterrupted, tmp_path, crash
):
    folder = tmp_path / "cut"
    machines.start(29512, 2, text, "--out", folder, *OPTIONS)
    wait_for(folder / "checkpoints" / CUT_AFTER)
    machines.set_link("down")
    time.sleep(2 * LOST_AFTER)  # Both machines must notice it before the network is back.
    machines.set_link("up")
    statuses, messages = machines.finish()
    assert statuses == [0, 0], messages
    assert all("has ended or cannot be reached; recurra train --resume" in m for m in messages)
    assert "resuming from step" in messages[0]
    assert loss_curve(folder) == loss_curve(uninterrupted)
    assert crash.differences(uninterrupted, folder) == []


def test_train_machine_cut_off_ends_and_continues_when_started_again(
    machines, text, uninterrupted, tmp_path, crash
):
    folder = tmp_path / "cut"
    machines.start(29513, 0, text, "--out", folder, *OPTIONS)
    wait_for(folder / "checkpoints" / CUT_AFTER)
    machines.set_link("down")
    started = time.monotonic()
    try:
        statuses, messages = machines.finish()
    finally:
        machines.set_link("up")
    # torch's own timeout is half an hour.
    assert time.monotonic() - started < 60
    assert statuses == [1, 1]
    assert all("has ended or cannot be reached; recurra train --resume" in m for m in messages)
    machines.start(29514, 0, "--resume", folder)
    statuses, messages = machines.finish()
    assert statuses == [0, 0], messages
    assert loss_curve(folder) == loss_curve(uninterrupted)
    assert crash.differences(uninterrupted, folder) == []


def test_train_killed_process_restarts_machines_that_count_differently(
    machines, text, uninterrupted, tmp_path, crash
):
    # The torchrun of the second machine restarts its process because the first machine joins
    # again, and does not count it as a failure.
    folder = tmp_path / "killed"
    machines.start(29515, 2, text, "--out", folder, *OPTIONS, elastic=True)
    wait_for(folder / "checkpoints" / CUT_AFTER)
    machines.kill_training(0)
    statuses, messages = machines.finish()
    assert statuses == [0, 0], messages
    assert "resuming from step" in messages[0]
    assert crash.differences(uninterrupted, folder) == []
