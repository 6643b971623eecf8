"""Processes agree on one start, also if the store has entries of processes that have ended."""

import threading
from datetime import timedelta

import pytest
import torch
from torch.distributed import HashStore

from recurra.errors import LostProcessError
from recurra.runtime.joining import agree_on_start


@pytest.fixture
def store():
    store = HashStore()
    store.set_timeout(timedelta(seconds=20))
    return store


def join(store, ranks, count):
    """Let these ranks join in threads, and return the result of each."""
    found = {}

    def one(rank):
        found[rank] = agree_on_start(store, rank, count, seconds=20)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return found


def test_agree_on_start_all_processes_get_the_same(store):
    found = join(store, range(3), 3)
    assert found.keys() == {0, 1, 2}
    assert len(set(found.values())) == 1


def test_agree_on_start_restart_gets_another_identifier(store):
    first, second = join(store, range(3), 3), join(store, range(3), 3)
    assert first[0] != second[0]
    assert len(set(second.values())) == 1


def test_agree_on_start_entries_of_ended_processes_are_not_used(store):
    # The first process answered one that has ended, and has ended itself before all had joined.
    store.set("member-1", "ended")
    with pytest.raises(LostProcessError, match="did not join within 0 s"):
        agree_on_start(store, 0, 3, seconds=0.05)
    stale = store.get("start-for-ended").decode()
    found = join(store, range(3), 3)
    assert len(set(found.values())) == 1
    assert stale not in found.values()


def test_agree_on_start_missing_first_process_is_an_error(store):
    with pytest.raises(torch.distributed.DistStoreError):
        agree_on_start(store, 1, 2, seconds=0.05)
