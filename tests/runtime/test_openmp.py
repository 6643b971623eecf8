"""The limit on the spinning of torch's OpenMP threads."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from recurra.runtime import openmp

needs_gnu_openmp = pytest.mark.skipif(
    openmp._start_region() is None, reason="torch does not use GNU OpenMP"
)


needs_schedstat = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="needs schedstat"
)


@pytest.fixture
def watcher(monkeypatch):
    """Replace the watcher by a new one, which forgets idle threads at once."""
    new = openmp._Watcher()
    monkeypatch.setattr(openmp, "LINGER_SECONDS", 0.0)
    monkeypatch.setattr(openmp, "_watcher", new)
    return new


def watchers():
    return [thread for thread in threading.enumerate() if thread.name == "recurra-spinning"]


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


class Region:
    """Counts how often the region was started and ended."""

    def __init__(self):
        self.started = self.ended = 0

    def hold(self):
        self.started += 1
        return self.end

    def end(self):
        self.ended += 1


def test_spin_limit_under_contention_holds_one_region():
    region = Region()
    limit = openmp.SpinLimit(region.hold)
    for waiting in (0.0, 0.05, 0.3, 0.4):
        limit.update(waiting)
    assert limit.is_limited
    assert (region.started, region.ended) == (1, 0)


def test_spin_limit_after_quiet_checks_ends_region():
    region = Region()
    limit = openmp.SpinLimit(region.hold)
    limit.update(0.5)
    for waiting in [0.0] * (openmp.QUIET_CHECKS - 1) + [0.05] + [0.0] * (openmp.QUIET_CHECKS - 1):
        limit.update(waiting)
    assert limit.is_limited, "a check in between was not quiet"
    limit.update(0.0)
    assert not limit.is_limited
    assert (region.started, region.ended) == (1, 1)


@needs_gnu_openmp
def test_hold_region_starts_threads_that_release_ends():
    def num_threads():
        return len(list(Path("/proc/self/task").iterdir()))

    before = num_threads()
    release = openmp._hold_region()
    assert num_threads() > before + 1
    release()
    deadline = time.monotonic() + 10
    # The system removes the entries of ended threads a little later.
    while num_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert num_threads() == before


@needs_gnu_openmp
def test_hold_region_leaves_number_of_threads_and_results():
    torch.manual_seed(0)
    left, right = torch.randn(2, 300, 300)
    threads, expected = torch.get_num_threads(), left @ right
    release = openmp._hold_region()
    try:
        assert torch.get_num_threads() == threads
        assert torch.equal(left @ right, expected)
    finally:
        release()


@needs_gnu_openmp
@needs_schedstat
def test_limited_spinning_blocks_of_all_threads_share_one_watcher(watcher):
    wait_for(lambda: not watchers())
    inside, leave = threading.Barrier(5), threading.Event()

    def block():
        with openmp.limited_spinning(), openmp.limited_spinning():
            inside.wait()
            leave.wait()

    threads = [threading.Thread(target=block) for _ in range(4)]
    for thread in threads:
        thread.start()
    inside.wait()
    time.sleep(3 * openmp.CHECK_SECONDS)
    assert len(watcher._watched) == 4
    assert len(watchers()) == 1
    leave.set()
    for thread in threads:
        thread.join()
    wait_for(lambda: not watchers())
    assert not watcher._watched


@needs_gnu_openmp
@needs_schedstat
def test_limited_spinning_after_watcher_ended_starts_another(watcher):
    for _ in range(2):
        with openmp.limited_spinning():
            assert watchers()
        wait_for(lambda: not watchers())


def test_limited_spinning_without_schedstat_starts_no_watcher(monkeypatch, watcher):
    monkeypatch.setattr(openmp, "seconds_waited", lambda thread: None)
    with openmp.limited_spinning():
        assert not watcher._watched


def test_limited_spinning_passes_errors_on():
    with pytest.raises(ZeroDivisionError), openmp.limited_spinning():
        raise ZeroDivisionError


def test_spin_limit_with_kernels_in_use_holds_region_until_they_are_not():
    region = Region()
    limit = openmp.SpinLimit(region.hold)
    limit.update(0.0, uses_kernels=True)
    assert limit.is_limited
    for _ in range(openmp.QUIET_CHECKS):
        limit.update(0.0, uses_kernels=True)
    assert limit.is_limited
    for _ in range(openmp.QUIET_CHECKS):
        limit.update(0.0)
    assert not limit.is_limited


@needs_gnu_openmp
@needs_schedstat
def test_kernels_called_starts_watcher_unless_spinning_is_brief(monkeypatch, watcher):
    torch.set_num_threads(2)
    monkeypatch.setattr(openmp, "_spins_briefly", lambda: True)
    openmp.kernels_called()
    assert not watcher._watched
    monkeypatch.setattr(openmp, "_spins_briefly", lambda: False)
    openmp.kernels_called()
    assert list(watcher._watched) == [threading.get_native_id()]
    wait_for(lambda: not watcher._watched)


@needs_gnu_openmp
@needs_schedstat
def test_kernels_called_by_threads_that_end_leaves_none_watched(monkeypatch, watcher):
    monkeypatch.setattr(openmp, "LINGER_SECONDS", 600.0)
    monkeypatch.setattr(openmp, "_spins_briefly", lambda: False)
    torch.set_num_threads(2)
    for _ in range(20):
        thread = threading.Thread(target=openmp.kernels_called)
        thread.start()
        thread.join()
    wait_for(lambda: not watcher._watched)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("OMP_THREAD_LIMIT", "1", "OMP_THREAD_LIMIT=1 is below"),
        ("OMP_DYNAMIC", "TRUE", "OMP_DYNAMIC=true"),
    ],
)
def test_hold_region_environment_limits_threads_logs_reason(
    monkeypatch, caplog, name, value, reason
):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(openmp, "_start_region", lambda: pytest.fail("a region was started"))
    with caplog.at_level("INFO"):
        openmp._hold_region()()
    assert reason in caplog.text


LIMITED = """
import threading
from pathlib import Path
import torch
from recurra.runtime import openmp
torch.ones(300, 300) @ torch.ones(300, 300)
refused = []
start = threading.Thread.start
def limited(thread):
    if len(list(Path("/proc/self/task").iterdir())) > 6:
        refused.append(thread)
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = limited
openmp._hold_region()()
assert refused
"""


@needs_gnu_openmp
def test_hold_region_at_thread_limit_starts_no_region():
    subprocess.run([sys.executable, "-c", LIMITED], check=True, timeout=120)


@needs_gnu_openmp
def test_kernels_called_without_new_threads_has_no_effect(monkeypatch, watcher):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(openmp, "_spins_briefly", lambda: False)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    torch.set_num_threads(2)
    openmp.kernels_called()
    assert not watcher._watched
