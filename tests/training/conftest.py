"""Fixtures that train a small model, compare the files of two runs, and inject OS errors."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from recurra import api
from recurra.report.progress import Progress
from recurra.training import trials

SMALL = {"hidden_size": 24, "batch_size": 4, "num_steps": 16, "lr": 1e-2, "sample_length": 20}


def _benchmark(name):
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def without_trial(monkeypatch):
    """Replace the trial before training, whose steps a test would count, by a duration."""
    monkeypatch.setattr(trials, "_seconds_per_step", lambda *_: 0.01)


@pytest.fixture(scope="session")
def crash():
    """The module benchmarks/crash.py, which compares the files of two runs."""
    return _benchmark("crash")


@pytest.fixture
def run(source):
    """A function that trains the small model and writes its run to a directory."""

    def train(folder, progress=None, **options):
        return api.train(source, out=folder, progress=progress or Progress(), **SMALL | options)

    return train


@pytest.fixture
def lines():
    """A function that reads the records of a JSON-lines file of a run."""

    def read(folder, name="metrics.jsonl"):
        return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]

    return read


class FailAt:
    """Makes the k-th call of the named functions of `os` raise OSError.

    Attributes:
        failed: whether there was a k-th call.
    """

    def __init__(self, monkeypatch, names, k, code):
        self.calls_left, self.failed = k, False
        for name in names:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name), code))

    def _wrapped(self, original, code):
        def call(*args, **kwargs):
            self.calls_left -= 1
            if self.calls_left == 0:
                self.failed = True
                raise OSError(code, os.strerror(code))
            return original(*args, **kwargs)

        return call


@pytest.fixture
def fail_at():
    """The class `FailAt`."""
    return FailAt
