"""The context of a training: what `train` restores in the process, and the time that counts."""

import signal

import pytest
import torch

from recurra.config import RunConfig
from recurra.kernels import library
from recurra.report.progress import Progress
from recurra.runtime.clock import Clock
from recurra.training.context import open_context


def test_train_restores_threads_generator_and_signals(run, tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state(), torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    run(tmp_path / "run", steps=2, threads=2, seed=3)
    after = torch.get_rng_state(), torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_open_context_does_not_count_build_of_kernels(monkeypatch):
    now = [0.0]
    clock = Clock(source=lambda: now[0])

    def build():
        now[0] += 25.0
        return True

    monkeypatch.setattr(library, "is_available", build)
    with open_context(RunConfig(), Progress(), clock):
        assert now[0] >= 25.0
        assert clock.seconds() == 0.0


def test_open_context_builds_no_kernels_for_cell_without_them(monkeypatch):
    built = []
    monkeypatch.setattr(library, "is_available", lambda: built.append(1))
    for options in ({"cell": "mogrifier"}, {"backend": "library"}, {"zoneout": 0.1}):
        with open_context(RunConfig.from_options(**options), Progress(), Clock()):
            assert not built


def test_clock_paused_time_does_not_count_even_after_exception():
    now = [0.0]
    clock = Clock(source=lambda: now[0])
    now[0] = 2.0

    def fail_later():
        with clock.paused():
            now[0] = 10.0
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail_later()
    now[0] = 11.0
    assert clock.seconds() == 3.0
