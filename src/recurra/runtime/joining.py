"""Agree on one start of the training among the processes that torchrun started together.

torchrun keeps its key-value store when it restarts the processes, so the store may contain entries
of processes that have ended. torchrun's counter of restarts cannot distinguish them: each machine
counts only its own failures, so the processes of one start can have different counts.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta
from typing import Any

from recurra.errors import LostProcessError

JOIN_SECONDS = 600.0
"""Maximum time in seconds that a process waits for the others to join."""
PAUSE_SECONDS = 0.02
"""Time in seconds between two reads of the store by the first process."""


def agree_on_start(store: Any, rank: int, count: int, seconds: float = JOIN_SECONDS) -> str:
    """Return an identifier that is the same in all processes of this start and in no other start.

    Every process creates a random identifier. That of the first process identifies the start. The
    first process writes it for each of the others under a key that contains the identifier of the
    other process, so that no process reads an entry that was written for a process that has ended.

    Args:
        store: a store of torch.distributed that all processes share.
        rank: rank of this process.
        count: number of processes.
        seconds: maximum time to wait for the other processes.

    Raises:
        LostProcessError: in the first process, another process did not join in this time.
        DistStoreError: in the other processes, the first process did not join in this time.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"member-{rank}", own)
        store.wait([f"start-for-{own}"], timedelta(seconds=seconds))
        start: str = store.get(f"start-for-{own}").decode()
        store.set(f"{start}-joined-{rank}", "yes")
        return start
    others = range(1, count)
    deadline = time.monotonic() + seconds
    while not all(store.check([f"{own}-joined-{other}"]) for other in others):
        for other in others:
            if store.check([f"member-{other}"]):
                store.set(f"start-for-{store.get(f'member-{other}').decode()}", own)
        if time.monotonic() > deadline:
            raise LostProcessError(f"the other processes did not join within {seconds:.0f} s")
        # A process may end and be restarted with another identifier, so the store is read again.
        time.sleep(PAUSE_SECONDS)
    return own
