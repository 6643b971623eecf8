"""A CUDA graph can capture a training step: the host reads and copies no tensor during it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recurra.config import ModelConfig
from recurra.kernels import buffers
from recurra.model import RecurrentLM
from recurra.recurrence import dropout
from recurra.recurrence.backends import flat_weights
from recurra.recurrence.cells import CELLS
from support.gpu_backends import backends_of

HOST_OPERATIONS = {
    "_local_scalar_dense",  # item(), int(t), bool(t)
    "lift_fresh",  # torch.tensor([...])
    "nonzero",
    "masked_select",
    "index",  # a list or a mask as an index
    "index_put_",
    "unique_consecutive",
    "_unique2",
    "is_nonzero",
    "equal",
}


class HostOperations(TorchDispatchMode):
    """Dispatch mode that collects the operations that a CUDA graph cannot capture."""

    def __init__(self):
        super().__init__()
        self.found, self.count = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        name = func.overloadpacket.__name__
        if name in HOST_OPERATIONS:
            self.found.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        ("plain", "fp32"),
        ("plain", "fp16"),
        ("ids", "fp32"),
        ("residual", "fp16"),
        ("zoneout", "fp32"),
    ],
)
@pytest.mark.parametrize(("cell", "backend"), [(c, b) for c in CELLS for b in backends_of(c)])
def test_training_step_runs_nothing_that_a_graph_cannot_capture(
    cell, backend, form, precision, monkeypatch
):
    if form == "zoneout" and not (backend == "reference" and CELLS[cell].reads_state):
        return
    if form == "ids" and CELLS[cell].traits.changes_inputs:
        return
    monkeypatch.setattr(flat_weights, "is_observed", lambda: False)
    torch.manual_seed(0)
    options = {"residual": True} if form == "residual" else {}
    config = ModelConfig(
        cell=cell,
        backend=backend,
        precision=precision,
        vocab_size=7,
        hidden_size=6,
        embedding_size=0 if form == "ids" else 6,
        num_layers=2,
        dropout=0.2,
        output_dropout=0.2,
        weight_dropout=0.2 if CELLS[cell].reads_state else 0.0,
        zoneout=0.1 if form == "zoneout" else 0.0,
        **options,
    )
    model = RecurrentLM(config)
    ids, targets = torch.randint(7, (2, 3, 5))
    seed, state = torch.tensor(12345), model.zero_state(3)
    with HostOperations() as seen, dropout.seeds_from(lambda: seed + 1):
        loss, _ = model.loss(ids, targets, state or None, recurrent_gradient_scale=1.0)
        loss.backward()
    assert seen.count > 50
    assert seen.found == set()


def test_host_operations_are_recognized():
    numbers = torch.arange(4.0)
    with HostOperations() as seen:
        float(numbers[0])
        torch.tensor([1, 2])
        numbers[[0, 1]].add_(numbers[numbers > 1.0])
        numbers.nonzero()
    assert seen.found == {"_local_scalar_dense", "lift_fresh", "index", "nonzero"}


def test_borrowed_buffers_of_other_devices_are_not_pooled():
    pool = buffers.BufferPool()
    for device, pooled in (("cpu", 2**20), ("meta", 0)):
        like = torch.empty(0, dtype=torch.uint8, device=device)
        pool.borrow(2**20, like=like)
        assert pool.free_bytes == pooled
        pool = buffers.BufferPool()
