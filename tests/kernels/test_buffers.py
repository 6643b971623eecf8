"""`BufferPool`: which buffers return to it and when, and its maximum size."""

import gc

import pytest
import torch

from recurra.kernels import buffers
from recurra.nn import GRU, LSTM, RNN


@pytest.fixture
def pool(monkeypatch):
    new_pool = buffers.BufferPool()
    for module in ("backends.bptt", "cells.elman", "cells.gru", "cells.lstm"):
        monkeypatch.setattr(f"recurra.recurrence.{module}.BUFFER_POOL", new_pool)
    return new_pool


def test_buffer_pool_reuses_freed_buffer(pool):
    like = torch.zeros(1)
    first = pool.borrow(300, 200, like=like)
    address = first.data_ptr()
    assert pool.free_bytes == 0
    del first
    assert pool.free_bytes == 300 * 200 * 4
    assert pool.borrow(200, 300, like=like).data_ptr() == address


def test_buffer_pool_never_lends_other_dtype_or_larger_buffer(pool):
    pool.borrow(300, 200, like=torch.zeros(1))
    assert pool.borrow(300, 200, like=torch.zeros(1).double()).dtype == torch.float64
    assert pool.free_bytes >= 300 * 200 * 4
    small = pool.borrow(10, like=torch.zeros(1))
    assert small.untyped_storage().nbytes() == 40


def test_buffer_pool_drops_oldest_buffers_when_full(pool):
    like = torch.zeros(1)
    many = [pool.borrow(20_000 + n, like=like) for n in range(3 * buffers.MAX_FREE_BUFFERS)]
    many += [pool.borrow(10, like=like) for _ in range(100)]
    del many
    assert len(pool._free) == buffers.MAX_FREE_BUFFERS
    assert pool.free_bytes == sum(b.nbytes for b in pool._free)


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_buffer_pool_gets_buffers_back_after_backward(pool, kind):
    layer = kind(64, 64, backend="bptt")
    loss = layer(torch.randn(20, 16, 64))[0].sum()
    held = pool.free_bytes
    loss.backward()
    gc.collect()
    assert pool.free_bytes > held + 2 * 20 * 16 * 64 * 4
    assert float(loss.detach()) == float(loss.detach())


@pytest.mark.parametrize("kind", [RNN, GRU, LSTM])
def test_buffer_pool_retained_graph_keeps_buffers(pool, kind):
    layer = kind(64, 64, backend="bptt")
    inputs = torch.randn(20, 16, 64, requires_grad=True)
    total = layer(inputs)[0].square().sum()
    first = torch.autograd.grad(total, inputs, retain_graph=True)[0]
    layer(torch.randn(20, 16, 64))[0].sum().backward()
    second = torch.autograd.grad(total, inputs)[0]
    assert torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")  # as with torch.nn
@pytest.mark.parametrize("kind", [RNN, GRU, LSTM])
def test_module_exported_equals_torch(pool, kind):
    ours = kind(4, 8, backend="bptt")
    theirs = kind.__mro__[2](4, 8)
    theirs.load_state_dict(ours.state_dict())
    inputs = torch.randn(5, 3, 4)
    program = torch.export.export(ours, (inputs,), strict=False)
    for module in (ours, program.module()):
        torch.testing.assert_close(module(inputs)[0], theirs(inputs)[0], rtol=1e-5, atol=1e-6)
