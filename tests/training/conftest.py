"""A small text, a small model, and what the files of two runs have in common."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from recurra import api
from recurra.report.progress import Progress

SMALL = {"hidden_size": 24, "batch_size": 4, "num_steps": 16, "lr": 1e-2, "sample_length": 20}


def _benchmark(name):
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def crash():
    """benchmarks/crash.py, whose comparison of two runs the tests share."""
    return _benchmark("crash")


@pytest.fixture
def run(source):
    """Train the small model into a folder."""

    def train(folder, progress=None, **options):
        return api.train(source, out=folder, progress=progress or Progress(), **SMALL | options)

    return train


@pytest.fixture
def lines():
    """The lines of a file of a run."""

    def read(folder, name="metrics.jsonl"):
        return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]

    return read


class FailAt:
    """Lets the k-th call of some functions of `os` fail, and the others pass.

    Attributes: `failed`, whether there was a k-th call.
    """

    def __init__(self, monkeypatch, names, k, code):
        self.left, self.failed = k, False
        for name in names:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name), code))

    def _wrapped(self, original, code):
        def call(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                self.failed = True
                raise OSError(code, os.strerror(code))
            return original(*args, **kwargs)

        return call


@pytest.fixture
def fail_at():
    return FailAt
