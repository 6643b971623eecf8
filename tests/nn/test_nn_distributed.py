"""recurra.nn in DistributedDataParallel and fully_shard, in two processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_processes.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.torchrun,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]


@pytest.mark.parametrize("wrapper", ["unused", "sharded"])
def test_module_in_two_processes_equals_torch(wrapper):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(SCRIPT), wrapper],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
