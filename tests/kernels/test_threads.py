"""The kernels in a process with others' threads: torch's number, its runtime, forks and loaders."""

import multiprocessing
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import recurra.nn
from recurra.kernels import library

pytestmark = [
    pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels"),
    # Forking a process that has threads is what these tests are about.
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
    # torch's own products wait for ever for the threads that the fork has lost; its loaders set
    # this in their workers.
    torch.set_num_threads(1)
    queue.put((threads, compute().numpy()))


def test_threads_equal_torch_threads():
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert library.threads() == threads


@needs_fork
def test_one_openmp_runtime_is_loaded():
    compute()
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {
        line.split()[-1]
        for line in maps
        if any(name in line.rsplit("/", 1)[-1] for name in ("libgomp", "libomp", "libiomp"))
    }
    assert len(runtimes) == 1, runtimes


@needs_fork
def test_forked_process_computes_with_one_thread():
    torch.set_num_threads(2)
    expected = compute()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=send, args=(queue,))
    child.start()
    threads, values = queue.get(timeout=60)
    child.join(timeout=60)
    assert child.exitcode == 0
    assert threads == 1
    assert torch.allclose(torch.from_numpy(values), expected, rtol=1e-5, atol=1e-6)


@needs_fork
def test_data_loader_workers_compute():
    torch.set_num_threads(2)
    expected = [compute(index) for index in range(4)]
    loader = DataLoader(Computed(), batch_size=None, num_workers=2, timeout=60)
    for actual, wanted in zip(loader, expected, strict=True):
        assert torch.allclose(actual, wanted, rtol=1e-5, atol=1e-6)
