"""The training loop with an engine whose results are up to five steps late."""

import json
import math

import pytest

from recurra.engine import select
from recurra.engine.autograd import AutogradEngine
from recurra.errors import NonFiniteError, TrainingInterrupted
from recurra.report.progress import Progress
from recurra.runtime.clock import Clock
from recurra.training import run as run_module
from support.recorded import RecordedEngine

OPTIONS = {
    "steps": 23, "report_every": 6, "backend": "reference", "output_dropout": 0.2,
    "weight_averaging": 0.9, "threads": 1, "schedule": "constant",
}  # fmt: skip


@pytest.fixture
def recorded(monkeypatch):
    """Use the recorded engine in training; return the list of engines that are built.

    The first one of a new run only measures the speed.
    """
    built = []

    class Engine(RecordedEngine):
        def __init__(self, *args):
            super().__init__(*args)
            built.append(self)

    monkeypatch.setattr(select, "ENGINES", (Engine, AutogradEngine))
    return built


def metrics(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"], record["tokens_per_second"]
    return records


KINDS = {
    "sequential sampling": {},
    "random sampling": {"sampling": "random"},
    "full truncation": {"bptt": "full", "batch_size": 64, "steps": 4, "report_every": 2},
    "randomized truncation": {"bptt": "randomized", "backend": "bptt"},
    "growing batches": {"batch_growth": 2, "window_growth": 2},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "schedule": "linear"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_engine_every_kind_of_training_equals_autograd(
    run, tmp_path, monkeypatch, recorded, kind
):
    options = OPTIONS | KINDS[kind]
    with monkeypatch.context() as patch:
        patch.setattr(select, "ENGINES", (AutogradEngine,))
        run(tmp_path / "plain", **options)
    run(tmp_path / "recorded", **options)
    assert recorded[-1].num_replayed > 0
    for plain, found in zip(
        metrics(tmp_path / "plain"), metrics(tmp_path / "recorded"), strict=True
    ):
        assert found == pytest.approx(plain, rel=1e-4)


def test_recorded_engine_resumed_equals_uninterrupted(run, tmp_path, listener, recorded):
    run(tmp_path / "uninterrupted", **OPTIONS)
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "parts", listener(stop_at=11), **OPTIONS)
    run_module.resume_run(tmp_path / "parts", Progress(), Clock())
    assert len(recorded) == 5
    for expected, found in zip(
        metrics(tmp_path / "uninterrupted"), metrics(tmp_path / "parts"), strict=True
    ):
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("on_nan", ["stop", "rollback"])
def test_recorded_engine_late_failure_names_failed_batch(
    run, tmp_path, monkeypatch, recorded, on_nan
):
    """Step 15 fails; the engine reports it after step 17 was started."""
    original, failed = RecordedEngine.step, []

    def step(self, batch, lr):
        if lr > 0.0 and self.num_updates == 14 and not failed:
            failed.append(batch)
            bias = self.model.head_bias.detach()
            before = float(bias[0])
            bias[0] = math.nan
            original(self, batch, lr)
            bias[0] = before
        else:
            original(self, batch, lr)

    monkeypatch.setattr(RecordedEngine, "step", step)
    if on_nan == "stop":
        with pytest.raises(NonFiniteError, match=r"\bupdate 15\b"):
            run(tmp_path / "run", **OPTIONS)
    else:
        run(tmp_path / "run", **OPTIONS, on_nan="rollback")
        assert metrics(tmp_path / "run")[-1]["step"] == 23
    (record,) = map(json.loads, (tmp_path / "run" / "failures.jsonl").read_text().splitlines())
    assert record["step"] == 14
    assert record["starts"] == failed[0].starts.tolist()


def test_recorded_engine_rolled_back_equals_autograd(run, tmp_path, monkeypatch, recorded):
    """The graphs of the steps before a rollback must not use the former state of the optimizer."""
    for engine, folder in ((AutogradEngine, "plain"), (RecordedEngine, "recorded")):
        with monkeypatch.context() as patch:
            if engine is AutogradEngine:
                patch.setattr(select, "ENGINES", (AutogradEngine,))
            patch.setattr(engine, "step", _failing_once(engine.step, 14))
            run(tmp_path / folder, **OPTIONS | {"optimizer": "adam", "on_nan": "rollback"})
        assert (tmp_path / folder / "failures.jsonl").is_file()
    for plain, found in zip(
        metrics(tmp_path / "plain"), metrics(tmp_path / "recorded"), strict=True
    ):
        assert found == pytest.approx(plain, rel=1e-4)


def _failing_once(original, number):
    """Return a method `step` that gives the loss NaN once, after this number of updates."""
    failed = []

    def step(self, batch, lr):
        fails = lr > 0.0 and self.num_updates == number and not failed
        bias = self.model.head_bias.detach()
        before = float(bias[0])
        if fails:
            failed.append(batch)
            bias[0] = math.nan
        original(self, batch, lr)
        if fails:
            bias[0] = before

    return step
