"""Threads of the kernels: their number, no OpenMP runtime, forks and data loaders."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import recurra.nn
from recurra.kernels import builder, library
from recurra.runtime import cores

pytestmark = [
    pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels"),
    # These tests fork a process that has threads.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")


def compute(seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    layer = recurra.nn.LSTM(5, 64, backend="native")
    outputs, _ = layer(torch.randn(7, 16, 5))
    outputs.square().sum().backward()
    return torch.cat([outputs.detach().flatten(), layer.weight_hh_l0.grad.flatten()])


class Computed(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return compute(index)


def send(queue):
    threads = library.threads()
    # Without this, products of torch would wait forever for threads that the fork does not have.
    # The workers of torch's data loaders set it too.
    torch.set_num_threads(1)
    with cores.use_threads(threads):
        values = compute().numpy()
    queue.put((threads, values))


def test_library_threads_equal_torch_threads():
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert library.threads() == threads


@needs_fork
def test_library_is_built_without_openmp():
    compute()
    binary = Path(builder.built_library()).read_bytes()
    assert b"GOMP_parallel" not in binary
    assert b"__kmpc_fork_call" not in binary


@needs_fork
def test_library_in_forked_process_uses_new_threads():
    torch.set_num_threads(2)
    expected = compute()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=send, args=(queue,))
    child.start()
    threads, values = queue.get(timeout=60)
    child.join(timeout=60)
    assert child.exitcode == 0
    assert threads == 2
    assert torch.allclose(torch.from_numpy(values), expected, rtol=1e-5, atol=1e-6)


@needs_fork
def test_library_in_data_loader_workers_gives_equal_results():
    torch.set_num_threads(2)
    expected = [compute(index) for index in range(4)]
    loader = DataLoader(Computed(), batch_size=None, num_workers=2, timeout=60)
    for actual, wanted in zip(loader, expected, strict=True):
        assert torch.allclose(actual, wanted, rtol=1e-5, atol=1e-6)


WORKERS = """
import os, sys, threading, time
from pathlib import Path
import torch
from recurra.kernels import library, products

def call():
    numbers = torch.ones(100_000)
    products.apply_mask(numbers, numbers, numbers)

def masks():
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            if (task / "comm").read_text().strip() == "recurra-kernel":
                found.append(os.sched_getaffinity(int(task.name)))
        except OSError:  # A thread has ended.
            pass
    return found

def call_on_one_processor():
    os.sched_setaffinity(0, one)
    call()

def call_again():
    time.sleep(0.2)  # The pool counts the processors every 0.1 s.
    call()

def call_on_all_processors():
    os.sched_setaffinity(0, every)
    call_again()

def check(expected):
    # A worker starts, and sets its mask, a little later than the call that needs it.
    end = time.monotonic() + 10
    while masks() != [expected] and time.monotonic() < end:
        time.sleep(0.01)
    assert masks() == [expected], masks()

library.threads = lambda: 2
every = os.sched_getaffinity(0)
one = {min(every)}
first = threading.Thread(target=call_on_one_processor)
first.start()
first.join()
check(every)
os.sched_setaffinity(0, one)
call_again()
check(one)
wide = threading.Thread(target=call_on_all_processors)
wide.start()
wide.join()
check(every)
os.sched_setaffinity(0, one)
call_again()
check(one)
os.sched_setaffinity(0, every)
call_again()
check(every)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two processors",
)
def test_workers_run_on_processors_of_the_process_and_not_of_the_first_caller():
    subprocess.run([sys.executable, "-c", WORKERS], check=True, timeout=120)


BOUND = """
import os, time, torch
from recurra.kernels import library, products
from recurra.runtime import cores, openmp
if openmp._start_region() is not None:
    assert len(os.sched_getaffinity(0)) == 1
assert library.threads() == cores.threads() == torch.get_num_threads() > 1, cores.describe()
numbers = torch.ones(100_000)
before = len(os.listdir("/proc/self/task"))
products.apply_mask(numbers, numbers, numbers)
assert len(os.listdir("/proc/self/task")) > before
"""


@pytest.mark.skipif(
    sys.platform != "linux" or cores.current_limit().processors.cores < 2,
    reason="needs Linux and two cores",
)
@pytest.mark.parametrize("variables", [{"OMP_PROC_BIND": "true"}, {"GOMP_CPU_AFFINITY": "0-1"}])
def test_workers_of_threads_bound_by_openmp_use_all_processors(variables):
    environment = {**os.environ, **variables}
    subprocess.run([sys.executable, "-c", BOUND], check=True, timeout=120, env=environment)
