"""Collectives: the devices of their tensors, and the arguments with which processes join."""

import sys

import pytest
import torch
from torch import distributed
from torch.cuda._utils import _get_device_index

from recurra.errors import LostProcessError
from recurra.runtime import distributed as runtime
from recurra.runtime.distributed import Processes

# The device meta represents a GPU: the host cannot read its values.
UNREADABLE = torch.device("meta")


@pytest.fixture
def messages(monkeypatch):
    """Replace torch's collectives by functions that record the device of their tensor."""
    devices = []
    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(
            distributed, name, lambda tensor, **options: devices.append(tensor.device.type)
        )
    return devices


def test_processes_control_messages_are_on_the_cpu(messages):
    processes = Processes(0, 2, UNREADABLE)
    assert processes.sum([1.0, 2.0]) == [1.0, 2.0]
    assert processes.run_on_first(lambda: "done") == "done"
    state = processes.gather_streams(torch.ones(1, 2, 3), 4)
    assert state.device.type == "cpu"
    assert state.shape == (1, 4, 3)
    assert messages == ["cpu"] * 4


def test_processes_receive_is_on_the_cpu(messages, monkeypatch):
    sent = iter([[5], [1, *b"done"]])
    monkeypatch.setattr(
        distributed, "broadcast", lambda t, src: messages.append(t.copy_(torch.tensor(next(sent))))
    )
    assert Processes(1, 2, UNREADABLE).run_on_first(lambda: "not called") == "done"
    assert [message.device.type for message in messages] == ["cpu", "cpu"]


def test_processes_sum_in_place_stays_on_the_device(messages):
    Processes(0, 2, UNREADABLE).sum_in_place(torch.ones(3, device=UNREADABLE))
    assert messages == ["meta"]


@pytest.fixture
def joined(monkeypatch):
    """Replace the functions of torch that a process calls to join, and record the calls."""
    calls = []
    group = {"rank": 0, "world_size": 1}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(
        distributed,
        "init_process_group",
        lambda backend, **options: calls.append((backend, options["timeout"])),
    )
    monkeypatch.setattr(distributed, "get_rank", lambda: group["rank"])
    monkeypatch.setattr(distributed, "get_world_size", lambda: group["world_size"])
    monkeypatch.setattr(distributed, "is_initialized", lambda: "aborted" not in calls)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: calls.append("destroyed"))
    # torch does not accept `cuda` without a number, which is the device of the first process.
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: calls.append(f"cuda:{_get_device_index(device)}")
    )
    monkeypatch.setattr(runtime, "agree_on_start", lambda store, rank, count: "start")
    monkeypatch.setattr(
        # The package has a function of the same name.
        sys.modules["torch.distributed.rendezvous"],
        "rendezvous",
        lambda url, timeout: iter([(distributed.HashStore(), 0, 2)]),
    )
    monkeypatch.setattr(
        distributed.distributed_c10d, "_abort_process_group", lambda: calls.append("aborted")
    )
    return calls


@pytest.mark.parametrize(
    ("device", "has_nccl", "backend"),
    [
        ("cpu", True, "gloo"),
        ("cuda", True, "cpu:gloo,cuda:nccl"),
        ("cuda:1", True, "cpu:gloo,cuda:nccl"),
        ("cuda:1", False, "gloo"),
    ],
)
def test_joined_processes_uses_gloo_for_the_host(joined, monkeypatch, device, has_nccl, backend):
    monkeypatch.setattr(distributed, "is_nccl_available", lambda: has_nccl)
    with runtime.joined_processes(torch.device(device)):
        pass
    selected = {"cpu": [], "cuda": ["cuda:0"], "cuda:1": ["cuda:1"]}[device]
    assert joined == [*selected, (backend, runtime.COLLECTIVE_TIMEOUT), "destroyed"]


@pytest.mark.parametrize(("device", "end"), [("cpu", "destroyed"), ("cuda", "aborted")])
def test_joined_processes_lost_process_leaves_the_gpu_collectives(joined, device, end):
    # NCCL would wait for an all-reduce in which the lost process does not take part.
    with (
        pytest.raises(LostProcessError, match="gone"),
        runtime.joined_processes(torch.device(device)),
    ):
        raise LostProcessError("gone")
    assert joined[-1] == end
    assert ("destroyed" in joined) == (device == "cpu")


@pytest.mark.parametrize(("others", "expected"), [(0.0, False), (1.0, True)])
def test_is_restart_is_the_same_on_all_machines(joined, monkeypatch, others, expected):
    monkeypatch.setattr(Processes, "sum", lambda self, values: [values[0] + others])
    with runtime.joined_processes(torch.device("cpu")):
        assert runtime.is_restart() is expected
    assert runtime.is_restart() is False
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert runtime.is_restart() is True


def test_job_name_of_several_machines_is_the_identifier_of_torchrun(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert runtime.job_name() == "job-7"
    # The identifier of a job on one machine is the default of torchrun, or chosen at random.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    first = runtime.job_name()
    monkeypatch.setenv("MASTER_PORT", "2")
    assert runtime.job_name() != first
