"""Memory that is read before it is written is visible in the tests of the recurrence."""

import pytest
import torch

from recurra.kernels import buffers


@pytest.fixture(autouse=True)
def _poison_buffers(monkeypatch):
    """Fill borrowed buffers and new memory with NaN, so that uninitialized reads are visible."""
    taken = buffers.BUFFER_POOL._take
    monkeypatch.setattr(
        buffers.BUFFER_POOL, "_take", lambda n, like: taken(n, like).fill_(float("nan"))
    )
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
