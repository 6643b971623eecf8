#!/usr/bin/env python3
"""Train every scenario on this machine and write the results to records.json.

usage: python tests/golden/record.py [--runs]

Run it only to add a scenario, to change the machine class, or after an intended change of results.
`--runs` also trains the run directories under runs/. These must come from version 0.1, because they
test that older runs stay readable.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import scenarios
from scenarios import RECORDS, RESUMED, RUNS, SCENARIOS

INTERRUPTED_AFTER = 11


def record_runs() -> None:
    """Train the complete and the interrupted run directory."""
    shutil.rmtree(RUNS, ignore_errors=True)
    scenarios.train(RESUMED, RUNS / "complete")
    scenarios.train(RESUMED, RUNS / "interrupted", stop_after=INTERRUPTED_AFTER)


def record() -> dict[str, object]:
    """Train every scenario and return its description."""
    found: dict[str, object] = {"machine": scenarios.machine(), "scenarios": {}}
    described: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in SCENARIOS:
            scenarios.train(name, Path(folder) / name)
            described[name] = scenarios.describe(Path(folder) / name)
        scenarios.train_in_two_processes(RESUMED, Path(folder) / "two")
        found["two_processes"] = scenarios.describe(Path(folder) / "two")
    return found | {"scenarios": described}


if __name__ == "__main__":
    if "--runs" in sys.argv:
        record_runs()
    RECORDS.write_text(json.dumps(record(), indent=1, ensure_ascii=False) + "\n", "utf-8")
