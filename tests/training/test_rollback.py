"""Non-finite losses and gradients: stop before the update, failure record, and rollback."""

import json
import math

import numpy as np
import pytest
import torch

from recurra.data.batches import BatchStream
from recurra.data.token_file import load_token_file
from recurra.engine.autograd import AutogradEngine
from recurra.engine.compiled import CompiledEngine
from recurra.errors import NonFiniteError, TrainingInterrupted
from recurra.report.progress import Progress
from recurra.runs.checkpoint_store import CheckpointStore
from recurra.runs.directory import RunDirectory
from recurra.runtime.clock import Clock
from recurra.training import run as run_module
from recurra.training.session import PendingStep, StepFailedError, TrainingSession

OPTIONS = {"steps": 24, "report_every": 6, "num_layers": 2, "dropout": 0.2, "schedule": "constant"}


@pytest.fixture
def poisoned(monkeypatch, without_trial):
    """A function that makes the gradient of head_weight infinite in the given updates."""

    def poison(*numbers, times=1):
        counts = {}

        def poisons(engine):
            number = engine.num_updates + 1
            counts[number] = counts.get(number, 0) + 1
            if number in numbers and counts[number] <= times:
                engine.model.head_weight.grad.add_(math.inf)

        def compiled(self, batch, state, original=CompiledEngine.gradients):
            result = original(self, batch, state)
            poisons(self)
            return result

        monkeypatch.setattr(CompiledEngine, "gradients", compiled)
        monkeypatch.setattr(AutogradEngine, "_exchange", lambda engine, _: poisons(engine))

    return poison


def test_train_non_finite_gradient_keeps_valid_checkpoints(run, tmp_path, lines, poisoned):
    poisoned(15, times=99)
    with pytest.raises(NonFiniteError, match=r"\bupdate 15\b.*head_weight.*failures\.jsonl"):
        run(tmp_path / "run", **OPTIONS, checkpoint_every=4)
    (failure,) = lines(tmp_path / "run", "failures.jsonl")
    assert failure["step"] == 14
    assert failure["rollbacks"] == 0
    checkpoints = CheckpointStore(tmp_path / "run" / "checkpoints")
    assert checkpoints.names() == ["step-00000008", "step-00000012"]
    for name in checkpoints.names():
        checkpoints.verify(name)


def test_train_failure_record_identifies_batch(run, tmp_path, lines, poisoned):
    poisoned(15, times=99)
    with pytest.raises(NonFiniteError):
        run(tmp_path / "run", **OPTIONS)
    (failure,) = lines(tmp_path / "run", "failures.jsonl")
    config = RunDirectory(tmp_path / "run").read_config().training
    ids = load_token_file(tmp_path / "run").train
    batches = BatchStream(ids, config).epoch(failure["epoch"], failure["batch"])
    batch = next(batches)
    assert failure["starts"] == batch.starts.tolist()
    assert failure["num_steps"] == batch.ids.shape[1]
    rows = [ids[s : s + failure["num_steps"]] for s in failure["starts"]]
    assert np.array_equal(rows, batch.ids)


def test_rollback_halves_learning_rate_and_reports_it(
    run, tmp_path, lines, listener, poisoned, crash
):
    poisoned(15)
    progress = listener()
    run(tmp_path / "run", progress, **OPTIONS, on_nan="rollback")
    (message,) = [m for m in progress.messages if "rollback 1 of 3" in m]
    assert "update 15" in message
    assert "step 12" in message
    metrics = lines(tmp_path / "run")
    assert [m["step"] for m in metrics] == [6, 12, 18, 24]
    assert [m["lr"] for m in metrics] == [1e-2, 1e-2, 5e-3, 5e-3]
    assert len(lines(tmp_path / "run", "failures.jsonl")) == 1
    training = tmp_path / "run" / "checkpoints" / "step-00000024" / "training.json"
    memory = json.loads(training.read_text("utf-8"))["memory"]
    assert (memory["rollbacks"], memory["lr_scale"]) == (1, 0.5)


def test_rollback_is_limited_to_three(run, tmp_path, lines, listener, poisoned):
    poisoned(15, times=99)
    progress = listener()
    with pytest.raises(NonFiniteError, match=r"\b3 rollbacks.*\bupdate 15\b"):
        run(tmp_path / "run", progress, **OPTIONS, on_nan="rollback")
    assert sum("rollback" in m for m in progress.messages) == 3
    failures = lines(tmp_path / "run", "failures.jsonl")
    assert [f["rollbacks"] for f in failures] == [0, 1, 2, 3]
    assert [f["lr"] for f in failures] == [1e-2, 5e-3, 2.5e-3, 1.25e-3]


def test_rollback_is_independent_of_checkpoint_interval(run, tmp_path, poisoned, crash):
    """A rollback returns to the last report, regardless of later checkpoints."""
    poisoned(15)
    run(tmp_path / "a", **OPTIONS, on_nan="rollback", checkpoint_every=14)
    poisoned(15)
    run(tmp_path / "b", **OPTIONS, on_nan="rollback", checkpoint_every=5)
    found = crash.differences(tmp_path / "a", tmp_path / "b")
    assert found == ["config.json"]


@pytest.mark.parametrize("stop", [13, 14, 16, 20])
def test_rollback_interrupted_run_resumes_exactly(
    run, tmp_path, listener, monkeypatch, crash, stop
):
    def diverge_at_full_rate(self):
        # The failure depends only on values that the checkpoint holds.
        lr = self.learning_rate()
        if self.state.step == 14 and lr == 1e-2:
            raise StepFailedError("the loss is nan", PendingStep(None, 14, 0, 14, lr))
        original(self)

    original = TrainingSession.step
    monkeypatch.setattr(TrainingSession, "step", diverge_at_full_rate)
    options = OPTIONS | {"on_nan": "rollback", "checkpoint_every": 1}
    run(tmp_path / "uninterrupted", **options)
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "parts", listener(stop_at=stop), **options)
    run_module.resume_run(tmp_path / "parts", Progress(), Clock())
    assert crash.differences(tmp_path / "uninterrupted", tmp_path / "parts") == []


def test_rollback_damaged_checkpoint_uses_older_one(
    run, tmp_path, lines, listener, poisoned, monkeypatch
):
    poisoned(15)
    progress = listener()
    original = CheckpointStore.write

    def write(self, name, files):
        cost = original(self, name, files)
        if name == "step-00000012":
            (self.folder / name / "state.safetensors").write_bytes(b"rot")
        return cost

    monkeypatch.setattr(CheckpointStore, "write", write)
    run(tmp_path / "run", progress, **OPTIONS, on_nan="rollback")
    assert any("step-00000012" in m and "damaged" in m for m in progress.messages)
    assert any("step 6" in m for m in progress.messages)
    assert [m["step"] for m in lines(tmp_path / "run")] == [6, 12, 18, 24]


def test_rollback_diverging_relu_run_completes(run, tmp_path, listener):
    """The learning rate of a ReLU recurrence is several times too large."""
    options = {"cell": "rnn-relu", "optimizer": "sgd", "clip_norm": 0, "schedule": "constant"}
    options |= {"steps": 300, "warmup": 0.0, "lr": 3.0, "report_every": 10}
    torch.manual_seed(0)
    with pytest.raises(NonFiniteError):
        run(tmp_path / "stopped", **options)
    progress = listener()
    run(tmp_path / "survived", progress, **options, on_nan="rollback")
    assert any("rollback" in m for m in progress.messages)


def test_rollback_applies_to_last_report(run, tmp_path, lines, listener):
    options = {"steps": 1, "report_every": 1, "lr": 3e38, "warmup": 0.0, "schedule": "constant"}
    options |= {"optimizer": "sgd", "clip_norm": 0}
    progress = listener()
    with pytest.raises(NonFiniteError, match=r"\b3 rollbacks.*\bupdate 1\b"):
        run(tmp_path / "run", progress, **options, on_nan="rollback")
    assert len(lines(tmp_path / "run", "failures.jsonl")) == 4
