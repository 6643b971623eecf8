"""Compare recurra.nn with torch.nn in one of several processes; run by torchrun.

The argument is `unused` for DistributedDataParallel with unused parameters, or `sharded` for
fully_shard.
"""

import os
import sys

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import recurra.nn


class TwoLayers(torch.nn.Module):
    """Two recurrent modules, of which the second one is unused."""

    def __init__(self, kind):
        super().__init__()
        self.used, self.unused = kind(4, 5, 2), kind(4, 5)

    def forward(self, x):
        return self.used(x)[0]


def with_unused_parameters(model):
    return DistributedDataParallel(model, find_unused_parameters=True)


def sharded(model):
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    fully_shard(model.used, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS = {"unused": with_unused_parameters, "sharded": sharded}


def gradients(kind, wrap):
    """Return the gradients of the used layer after two batches of each process."""
    torch.manual_seed(0)
    model = TwoLayers(kind)
    wrapped = wrap(model)
    torch.manual_seed(distributed.get_rank())
    for _ in range(2):
        wrapped(torch.randn(6, 3, 4)).square().sum().backward()
    assert model.unused.weight_hh_l0.grad is None
    grads = [p.grad for p in model.used.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]


def main(wrap):
    distributed.init_process_group("gloo")
    try:
        for name in ("RNN", "GRU", "LSTM"):
            actual = gradients(getattr(recurra.nn, name), wrap)
            expected = gradients(getattr(torch.nn, name), wrap)
            for a, e in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(WRAPPERS[sys.argv[1]])
    # A device mesh keeps the threads of its process group running after the group was destroyed.
    # If one of them releases a tensor while Python exits, torch aborts the process.
    os._exit(0)
