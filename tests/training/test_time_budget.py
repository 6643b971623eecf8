"""Training with a budget in minutes: its end, the schedule, and the share of the validation."""

import itertools
import json
import time

import pytest

from recurra.config import RunOptions
from recurra.report.progress import Progress
from recurra.runs.directory import RunDirectory
from recurra.runtime.clock import Clock
from recurra.training import estimate
from recurra.training import run as run_module
from recurra.training.creation import RunRequest

SIZES = {"hidden_size": 24, "batch_size": 4, "num_steps": 16, "sample_length": 20}


def test_train_minutes_limits_total_time(run, lines, tmp_path):
    clock = Clock()
    run(tmp_path / "run", minutes=0.05, schedule="cosine", max_epochs=0)
    assert 1.5 < clock.seconds() < 6.0
    assert lines(tmp_path / "run")[-1]["lr"] < 1e-2 * 0.5


def test_train_max_epochs_ends_time_budget_early(run, lines, tmp_path):
    clock = Clock()
    run(tmp_path / "run", minutes=1, max_epochs=2, schedule="linear", final_lr=0.0)
    assert clock.seconds() < 20.0
    last = lines(tmp_path / "run")[-1]
    assert last["epoch"] == pytest.approx(2.0)
    # The schedule has reached its end.
    assert last["lr"] < 1e-3


def test_train_warm_up_starts_at_first_update(source, lines, tmp_path):
    started = time.monotonic() - 2.0
    options = {"warmup": 0.5, "schedule": "constant", "report_every": 1, "lr": 1e-2, **SIZES}
    given = RunOptions.of(minutes=0.08, **options)
    request = RunRequest([source], given)
    run_module.start_run(request, tmp_path / "run", Progress(), Clock(started))
    rates = [line["lr"] for line in lines(tmp_path / "run")]
    assert rates[0] < 1e-2 / 4
    # The time reserved for the last report is estimated, so the progress can decrease slightly.
    assert all(later > 0.98 * earlier for earlier, later in itertools.pairwise(rates))


def test_train_slow_validation_is_limited_to_share_of_time(
    source, run, tmp_path, monkeypatch, listener
):
    source.write_text(source.read_text() * 40)
    monkeypatch.setattr(estimate, "_validate", lambda session, num: time.sleep(2e-4 * num))
    progress = listener()
    lm = run(tmp_path / "run", progress, minutes=0.1)
    plan = "\n".join(progress.plans)
    # 5 % of 6 s permit fewer tokens than the minimum.
    assert "validate  the first 2,048 of 8,1" in plan
    final = lm.path / "checkpoints" / RunDirectory(lm.path).checkpoints.names()[-1]
    timing = json.loads((final / "session.json").read_text())["timing"]
    assert timing["validation_tokens"] == 2048


def test_train_fast_validation_reads_all_tokens(run, tmp_path, listener):
    progress = listener()
    run(tmp_path / "run", progress, minutes=0.05)
    assert "validate" not in "\n".join(progress.plans)


def test_train_tiny_time_budget_saves_model(run, lines, tmp_path):
    lm = run(tmp_path / "run", minutes=1e-6)
    assert [m["step"] for m in lines(tmp_path / "run")] == [1]
    assert isinstance(lm.generate("the ", max_new_tokens=3), str)
