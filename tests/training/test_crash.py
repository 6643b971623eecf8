"""Runs that are killed at random times and during saves; a short form of benchmarks/crash.py."""

import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


@pytest.mark.slow
def test_train_repeatedly_killed_equals_uninterrupted_run(crash, tmp_path):
    found = crash.crash(kills=3, steps=150, seed=3, folder=tmp_path)
    assert found.keys() == {"sequential", "random"}
    for counts in found.values():
        assert counts.pop("different files") == []
        # The time of each kill is drawn at random, so one of these keys can be missing.
        assert counts.get("random time", 0) + counts.get("inside a save", 0) == 3
        assert counts["finished runs"] >= 1
