"""Trials measure steps of the engine that trains, and change nothing of a run."""

import numpy as np
import pytest
import torch

from recurra.config import RunConfig, RunOptions
from recurra.data.batches import BatchStream
from recurra.engine import select
from recurra.engine.compiled import CompiledEngine
from recurra.engine.engine import StepResult
from recurra.errors import LostProcessError
from recurra.model.recurrent_lm import RecurrentLM
from recurra.runtime.distributed import SINGLE_PROCESS, Processes
from recurra.training import trials
from recurra.training.trials import SpeedTrial, TrialError, attempt, seconds_per_step
from support.recorded import RecordedEngine

IDS = np.arange(10_000, dtype=np.uint16) % 7
SMALL = {"hidden_size": 8, "batch_size": 4, "num_steps": 8, "weight_averaging": 0.9}


def model_and_stream(processes=SINGLE_PROCESS, **options):
    config = RunOptions.of(**SMALL | options).with_vocab_size(7).config
    return RecurrentLM(config.model), BatchStream(IDS, config.training, processes)


@pytest.fixture(autouse=True)
def _short_trials(monkeypatch):
    monkeypatch.setattr(trials, "TRIAL_SECONDS", 0.01)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_seconds_per_step_changes_nothing(optimizer):
    model, stream = model_and_stream(optimizer=optimizer, output_dropout=0.5, weight_decay=0.1)
    engine = select.select_engine(model, stream.config)
    engine.step(next(stream.epoch(0)), 0.1)
    engine.synchronize()
    before = {name: tensor.clone() for name, tensor in engine.state_dict().items()}
    assert seconds_per_step(model, stream) > 0.0
    after = engine.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert engine.num_updates == 1


def test_seconds_per_step_includes_update(monkeypatch):
    updates, step = [], CompiledEngine._clip_and_update

    def count(self, lr):
        updates.append(lr)
        return step(self, lr)

    monkeypatch.setattr(CompiledEngine, "_clip_and_update", count)
    seconds_per_step(*model_and_stream())
    assert len(updates) >= 2
    assert set(updates) == {0.0}


def test_seconds_per_step_waits_for_asynchronous_engine_once_per_group(monkeypatch):
    groups, pending = [], []

    class Asynchronous(RecordedEngine):
        def step(self, batch, lr):
            pending.append(lr)

        def synchronize(self):
            groups.append(len(pending))
            self.max_pending = 5
            pending.clear()
            return [StepResult(1.0, 1, 1.0)]

    monkeypatch.setattr(select, "ENGINES", (Asynchronous,))
    seconds_per_step(*model_and_stream(backend="bptt"))
    assert groups[: trials.UNTIMED_STEPS + 1] == [1] * (trials.UNTIMED_STEPS + 1)
    assert set(groups[trials.UNTIMED_STEPS + 1 :]) == {5}


def test_seconds_per_step_does_not_time_recording(monkeypatch):
    monkeypatch.setattr(select, "ENGINES", (RecordedEngine,))
    recorded, measure = [], trials._mean_seconds

    def mean_seconds(engine, *arguments):
        recorded.append(engine.num_recorded)
        return measure(engine, *arguments)

    monkeypatch.setattr(trials, "_mean_seconds", mean_seconds)
    seconds_per_step(*model_and_stream(backend="bptt"))
    # The graph is recorded before the last two calls, which are the timed ones.
    assert recorded[-2:] == [1, 1]


def test_seconds_per_step_slow_step_is_measured_once(monkeypatch):
    calls = []
    monkeypatch.setattr(trials, "_mean_seconds", lambda *a: calls.append(a) or 2.0)
    assert seconds_per_step(*model_and_stream()) == 2.0
    assert len(calls) == 1


def test_seconds_per_step_in_one_of_two_processes_calls_no_collective():
    # No process group exists, so a collective would raise an error.
    second = Processes(rank=1, count=2)
    model, stream = model_and_stream(second)
    assert seconds_per_step(model, stream, second) > 0.0


def test_speed_trial_leaves_random_generator_unchanged():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    config = RunConfig.from_options(**SMALL, output_dropout=0.5)
    assert SpeedTrial(IDS % 2, SINGLE_PROCESS)(config) > 0.0
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nSee"), "CUDA out of memory"),
        (TypeError("Cannot convert a tensor to float64"), "Cannot convert a tensor to float64"),
    ],
)
def test_attempt_failure_has_reason_of_first_sentence(error, reason):
    def failing(config):
        raise error

    with pytest.raises(TrialError, match=f"^{reason}$") as caught:
        attempt(failing, RunConfig())
    # Nothing refers any more to the frames of the failed trial, which hold the tensors.
    assert caught.value.__context__ is None


def test_attempt_lost_process_is_not_a_failed_trial():
    def lost(config):
        raise LostProcessError("another process has ended")

    with pytest.raises(LostProcessError):
        attempt(lost, RunConfig())
