"""Agree on one start of the training among the processes that torchrun started together.

torchrun keeps its key-value store when it restarts the processes, so the store may have the entries
of processes that have ended. torchrun's own counter of restarts does not tell them apart: each
machine counts its own failures, so the processes of one start have different numbers.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta
from typing import Any

from recurra.errors import LostProcessError

JOIN_SECONDS = 600.0
"""Maximum time in seconds between the first and the last process that joins."""
PAUSE_SECONDS = 0.02


def agree_on_start(store: Any, rank: int, count: int, seconds: float = JOIN_SECONDS) -> str:
    """Return an identifier that all processes of this start get, and no process of another start.

    The first process invents it, and tells each of the others under a key that this process has
    invented. An entry of a process that has ended is therefore never read.

    Args:
        store: a store of torch.distributed that all processes share.
        rank: rank of this process.
        count: number of processes.
        seconds: maximum time to wait for the other processes.

    Raises:
        LostProcessError: another process did not join in this time.
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
        # The others may have ended and may be about to be restarted, so this process polls.
        time.sleep(PAUSE_SECONDS)
    return own
