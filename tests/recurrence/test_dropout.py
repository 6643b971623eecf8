"""`fill_mask`: rate, scale and independence of masks; kernel and torch give equal masks."""

import threading

import pytest
import torch

from recurra.kernels import library
from recurra.recurrence.dropout import fill_mask, seeds_from


def make_mask(count, probability, seed=3):
    torch.manual_seed(seed)
    return fill_mask(torch.full((count,), float("nan")), probability)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.93])
def test_fill_mask_has_rate_and_independent_entries(monkeypatch, probability, compiled):
    if compiled and not library.is_available():
        pytest.skip("no compiler for the kernels")
    monkeypatch.setattr(library, "is_available", lambda: compiled)
    mask = make_mask(400_001, probability)
    assert set(mask.unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - probability)))}
    dropped = (mask == 0).double()
    for lane in range(4):
        assert float(dropped[lane::4].mean()) == pytest.approx(probability, abs=0.005)
    for distance in (1, 2, 3, 4, 512):
        together = float((dropped[distance:] * dropped[:-distance]).mean())
        assert together == pytest.approx(probability**2, abs=0.005)


@pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [1, 3, 255, 256, 257, 5000])
def test_fill_mask_of_kernel_equals_torch(monkeypatch, count, threads):
    torch.set_num_threads(threads)
    by_kernel = make_mask(count, 0.3)
    after = torch.rand(1)
    monkeypatch.setattr(library, "is_available", lambda: False)
    assert torch.equal(make_mask(count, 0.3), by_kernel)
    assert torch.equal(torch.rand(1), after)


def test_fill_mask_seeds_give_different_masks():
    assert not torch.equal(make_mask(1000, 0.5, seed=1), make_mask(1000, 0.5, seed=2))


def test_seeds_from_in_two_threads_stays_in_its_thread():
    """Contexts that overlap in time end in any order."""
    entered, first_left = threading.Event(), threading.Event()

    def work():
        with seeds_from(lambda: 2):
            entered.set()
            first_left.wait(timeout=20)

    thread = threading.Thread(target=work)
    with seeds_from(lambda: 1):
        thread.start()
        assert entered.wait(timeout=20)
        inside = fill_mask(torch.empty(50), 0.5)
    first_left.set()
    thread.join(timeout=20)
    with seeds_from(lambda: 1):
        expected = fill_mask(torch.empty(50), 0.5)
    assert torch.equal(inside, expected)
    after = [fill_mask(torch.empty(50), 0.5) for _ in range(2)]
    assert not torch.equal(*after)
