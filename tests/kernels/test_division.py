"""The division of time steps among threads, and results that do not depend on it."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from ctypes import c_int32

import pytest
import torch

import recurra.nn
from recurra.kernels import library
from recurra.runtime.devices import num_threads

pytestmark = pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels")

FIRST, SECOND = 48 << 10, 1 << 20
CELLS = {"rnn": 1, "gru": 3, "lstm": 4}
LAYERS = {"rnn": recurra.nn.RNN, "gru": recurra.nn.GRU, "lstm": recurra.nn.LSTM}
THREADS = (1, 2, 4, 8, 16, 64)


def divide(threads: int, rows: int, units: int, gates: int, operand_bytes: int = 4):
    chosen = (c_int32 * 2)()
    library.load().recurra_divide(threads, rows, units, gates, operand_bytes, FIRST, SECOND, chosen)
    return tuple(chosen)


def panels(units: int) -> int:
    return -(-units // (2 * library.load().recurra_lanes()))


@pytest.fixture(params=[0, 64], ids=["processors", "64 threads"])
def thread_limit(request) -> Iterator[int]:
    """Limit the threads to the processors, or start up to 64 of them."""
    library.load().recurra_limit_threads(request.param)
    yield request.param
    library.load().recurra_limit_threads(0)


@pytest.mark.parametrize("gates", CELLS.values())
@pytest.mark.parametrize("units", [1, 33, 128, 512, 1000])
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 33, 128])
def test_divide_fits_threads_rows_and_panels(rows, units, gates):
    for threads in (1, 2, 3, 4, 8, 16, 64, 200):
        groups, parts = divide(threads, rows, units, gates)
        assert 1 <= groups <= min(rows, threads)
        assert 1 <= parts <= panels(units)
        assert groups * parts <= threads


@pytest.mark.parametrize("operand_bytes", [2, 4])
def test_divide_sixteen_rows_keep_sixteen_and_sixty_four_threads_busy(operand_bytes):
    for gates in CELLS.values():
        for units in (384, 512, 1024):
            for threads in (16, 64):
                groups, parts = divide(threads, 16, units, gates, operand_bytes)
                assert groups * parts >= 0.9 * threads
                assert parts > 1


def test_divide_single_row_is_divided_by_units():
    assert divide(4, 1, 512, 4) == (1, 4)


def test_divide_many_rows_of_small_weight_need_no_barrier():
    assert divide(8, 256, 128, 1) == (8, 1)


def test_divide_weight_beyond_second_cache_is_divided_by_units():
    # 1024 units of an LSTM in fp32 are 16 MB.
    groups, parts = divide(8, 32, 1024, 4)
    assert parts > groups


def run(cell: str, threads: int, precision: str, rows: int, units: int) -> list[torch.Tensor]:
    """Return outputs, final states and all gradients of a layer."""
    torch.manual_seed(0)
    layer = LAYERS[cell](5, units, backend="native")
    inputs = torch.randn(6, rows, 5, requires_grad=True)
    initial = [torch.randn(1, rows, units, requires_grad=True) for _ in range(1 + (cell == "lstm"))]
    with num_threads(threads), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        outputs, state = layer(inputs, tuple(initial) if cell == "lstm" else initial[0])
        states = list(state) if cell == "lstm" else [state]
        loss = outputs.float().square().sum() + sum(part.float().sum() for part in states)
        loss.backward()
    leaves = [inputs, *initial, *layer.parameters()]
    return [outputs.detach(), *(part.detach() for part in states), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 4e-2)])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("rows", "units"), [(3, 130), (16, 96), (33, 40)])
def test_layer_results_do_not_depend_on_threads(
    cell, rows, units, precision, tolerance, thread_limit
):
    expected = run(cell, 1, precision, rows, units)
    for threads in THREADS[1:]:
        for got, want in zip(run(cell, threads, precision, rows, units), expected, strict=True):
            scale = max(1.0, float(want.abs().max()))
            torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance * scale)


@pytest.mark.parametrize("threads", THREADS)
def test_layer_results_repeat_bit_for_bit(threads, thread_limit):
    first = run("lstm", threads, "fp32", 16, 96)
    for _ in range(5):
        for got, want in zip(run("lstm", threads, "fp32", 16, 96), first, strict=True):
            assert torch.equal(got, want)


def test_layer_from_several_python_threads_returns_same_results(thread_limit):
    results: list[torch.Tensor] = []

    def work() -> None:
        layer = LAYERS["gru"](5, 96, backend="native")
        layer.load_state_dict(reference.state_dict())
        for _ in range(20):
            results.append(layer(inputs)[0].detach())

    torch.manual_seed(0)
    reference = LAYERS["gru"](5, 96, backend="native")
    inputs = torch.randn(6, 16, 5)
    with num_threads(4):
        want = reference(inputs)[0].detach()
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(results) == 80
    assert all(torch.equal(got, want) for got in results)


PINNED = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.path.insert(0, sys.argv[1])
from kernels.test_division import library, run
library.load().recurra_limit_threads(int(sys.argv[2]))
for threads in (2, 64):
    for _ in range(3):
        run("lstm", threads, "fp32", 16, 96)
print("done")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="pins threads on Linux only")
@pytest.mark.parametrize("limit", ["0", "16"])
def test_layer_on_one_processor_beside_busy_process_does_not_hang(limit):
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(busy.pid, {min(os.sched_getaffinity(0))})
        tests = os.path.dirname(os.path.dirname(__file__))
        command = [sys.executable, "-c", PINNED, tests, limit]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    finally:
        busy.kill()
        busy.wait()
    assert done.stdout.strip() == "done", done.stderr
